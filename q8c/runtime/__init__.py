"""Reading and running compiled files. Needs numpy and the standard library; `q8c.runtime.session.load` is the way in.

    header        the file's frame: magic, version, where the manifest lies, hashes
    manifest      what a file says about itself: its parts and how to choose among them; strict JSON in and out
    model         what it says of a part's signature and how its code is called
    sections      what lies where in a file
    writer        writes a file: constants one by one, code, text; all or nothing
    artifact      reads a file: checks every byte, maps weights
    code          puts an image of machine code into executable memory
    dims          expression programs: sizes as functions of the input shapes
    cache         what a file says of keys and values that are kept from run to run
    state         their memory; copies and rewinding
    keeper        runs on a state, or on past and present arrays
    signature     checks a feed, solves for the symbolic sizes, plans memory
    memory        frames and arenas, what memory is left
    threads       worker threads parked inside the compiled code
    runner        runs one part of a file
    chooser       which part a run is of
    session       `load` and `Session.run`
    cpu, cgroup   what this machine can execute and what this process may use of it
"""
