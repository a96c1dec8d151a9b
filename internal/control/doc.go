// Package control is the control protocol between a client and whoever runs guests
// for it: a supervisor (internal/supervisor) or a bridge to an engine (internal/bridge).
//
// Frames go both ways on a unix stream socket:
//
//	+----------------------+---------------------------+
//	| length, u32, network | JSON object, length bytes |   length ≤ 1 MiB
//	+----------------------+---------------------------+
//
// internal/supervisor draws what is said in them. A reply may carry one descriptor,
// which travels with its first byte. What a guest itself says does not pass here: see
// pkg/channel.
//
// This package knows the bytes and the requests, and does nothing about them.
package control
