// Package channel is the wire between a host and a guest: frames, and the
// encoding of the values inside them.
//
// A guest's stdin and stdout carry frames, so whatever engine can carry a
// container's stdio can host a guest. All numbers are big endian:
//
//	 0      4      5       6      8      12
//	+------+------+-------+------+------+-----------------------
//	| size | type | flags | zero | id   | payload (size bytes)
//	+------+------+-------+------+------+-----------------------
//
//	host to guest                        payload
//	 1 EXEC       source                 UTF-8
//	 2 CALL       [func, [args], {kw}]   value
//	 3 POST       for the guest's recv   value
//	 4 INTERRUPT  of request id          -
//	 5 CANCEL     of request id          -
//	 6 CONFIG     of the agent           JSON; before any request
//	guest to host
//	16 READY      python, pid, protocol  JSON
//	17 DONE       exec id has ended      -
//	18 RESULT     of call id             value
//	19 ERROR      of request id          JSON; flag 1: it was an exec
//	20 POST       for the host's recv    value
//	21 STDOUT     of request id or 0     bytes
//	22 STDERR     of request id or 0     bytes
//	23 NOTICE     something to know      JSON
//
// Limits: values and source have at most the policy's message size plus 64 KiB;
// a configuration at most 1 MiB, streams and other JSON at most 64 KiB; the others are empty. Ids of requests
// begin at 1; frames that belong to no request have id 0. Anything else is a
// [ProtocolError], after which the channel is of no more use: a guest is
// hostile input, and the host ends it.
//
// Every request is answered once, by DONE or RESULT, or by ERROR. An INTERRUPT
// or CANCEL of a request that still waits answers it with ERROR; an INTERRUPT of
// the running one raises KeyboardInterrupt in it; both are ignored afterwards.
//
// # Large values
//
// Where both ends of a socket have said that they take them (flag 4 of a host's
// frames, "memfd" in READY), a value of more than 256 KiB travels beside the
// channel: its frame has flag 2, its payload is a u64 and the value's beginning
// (one byte, or with buffers up to the end of the JSON), and one descriptor comes
// with the frame's first byte: a file in memory with the rest, whose size is the
// u64. It has all four seals and no holes, or the channel is broken off; so it is
// for a second descriptor before the first was claimed, and for one that no frame claims.
//
// # Values
//
// The first byte of a value names its form: 'S' a UTF-8 string, 'Y' bytes, 'J'
// JSON, 'B' JSON and binary buffers. What JSON cannot say is an object with the
// single key "$": {"$": ["tuple", [1, 2]]}. The table of tags is in
// rootfs/agent/codec.py, which guests and the Python client use; the files in
// testdata/corpus hold both to the same verdicts.
//
// Decoding is safe by construction: it builds plain data and nothing else, and
// what it may cost is bounded before it is built ([Limits]).
//
// Do not use this package to store values: there is no promise that tomorrow's
// version reads them.
package channel
