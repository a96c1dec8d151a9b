"""The guest agent: what runs as process 1 of a guest, in front of its code.

Started as `python3 -I -S agent.pyc` with the channel as stdin and stdout, it
moves the channel out of the way, says READY and then serves requests one after
another: guest code runs on its main thread, in one `__main__` namespace that
lives as long as the guest. With `--script FILE` it runs one file instead.

    agent.py     configuration, and which mode
    start.py     taking over: file descriptors, signals, streams
    zygote.py    an agent that is forked for each guest
    reloaded.py  what a reload has changed
    frames.py    frames: header, types, sizes
    codec.py     values as bytes (the client uses the same file)
    signals.py   when a signal handler may run, and when it has to wait
    channel.py   frames in, from any thread
    writer.py    frames out, from any thread
    burst.py     many short posts at once
    memfd.py     large payloads beside the channel (the client uses the same file)
    ends.py      the descriptors of the channel: a socket or two pipes
    watcher.py   noticing what arrives while guest code runs
    streams.py   stdout and stderr as frames
    session.py   exec, call, interrupt, cancel, end
    faults.py    exceptions as data
    imports.py   the import allow-list
    orphans.py   reaping what process 1 inherits
    script.py    the script mode

Nothing here confines guest code: the kernel does. Code in the same process can
always break the agent; all it gains is that its own guest ends.
"""
