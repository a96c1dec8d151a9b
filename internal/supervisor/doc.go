// Package supervisor runs the guests of one machine for the clients that ask for
// them: it is what `psi-shim serve` does.
//
// Processes. The command runs twice:
//
//	client ──spawns──► outer psi-shim            waits; opens the client's pidfd
//	                     └─► inner psi-shim      pid 1 of a pid namespace, own mount
//	                           │                 namespace, own /proc; serves
//	                           ├─► guest
//	                           └─► guest
//
// When the inner one dies, by whatever signal, the kernel kills everything below it
// with its pid namespace. It dies with the outer one (parent death signal and pidfd),
// and an embedded one with its client (pidfd; end of file may never come, because a
// forked child of the client holds the socket too).
//
// A guest is made in two steps, blank and then specialised (blank.go, spawn.go), so that some
// can wait in a pool (pool.go); most are forked from a warm interpreter (zygotes.go).
//
// The control socket carries frames both ways:
//
//	+----------------------+---------------------------+
//	| length, u32, network | JSON object, length bytes |   length ≤ 1 MiB
//	+----------------------+---------------------------+
//
//	client                                   supervisor
//	  {"id":1,"op":"hello","version":2}  ──►
//	                                     ◄──  {"id":1,"ok":{…}}
//	  {"id":2,"op":"spawn",…}            ──►
//	                                     ◄──  {"id":2,"ok":{…}} + one descriptor
//	  {"id":3,"op":"connect",…}          ──►
//	                                     ◄──  {"id":3,"ok":{…}} + one descriptor
//	                                     ◄──  {"event":"MEM_KILL",…}        pushed
//	                                     ◄──  {"exited":{…}}                pushed
//
// Events and ends of guests are pushed to the connection that owns the guest, and to
// those connections of the same user whose hello said "watch": true. Denials
// give way when a client's queue is half full.
//
// A guest that waited in the pool has said READY; the reply to its spawn has that, as "ready".
// From others it is the first frame on the channel.
//
// connect gives the client a socket that is connected to a port which a guest's policy
// exposes (connect.go).
//
// reload changes the policy of running guests (reload.go), protect guards that with a
// token (authority.go). Root's tools find every supervisor under an abstract name
// (attach.go).
//
// Requests run at the same time and are answered as they finish. The descriptor is
// the guest's stdin and stdout (package channel tells what flows there), sent with
// the first byte of its reply; the supervisor keeps no copy and never sees the data.
//
// A client is not trusted: an unknown operation, key or version, a broken frame, a
// client that does not read, each has one answer (an error reply for what can be
// answered, the end of the connection and of its guests for the rest). A shared
// supervisor never does for a client what the client could not do itself: host paths
// are opened with the client's own credentials (view.go).
//
// One thing a client's guests can do that the client could not: their connections to
// the endpoints of their policy are made by the supervisor, as root. A service that
// tells local users apart by the uid of a TCP connection sees root. Where that matters,
// do not put its users in the group.
//
// This package does not decide what a guest may do (pkg/policy), compile it
// (pkg/bundle), or enforce it (internal/container, internal/attend).
package supervisor
