// Package psi runs untrusted Python in a real container, from Go, at the price of a
// function call. It is the Go form of the Python package pyisolate: the same nouns and
// verbs, the same meanings.
//
//	client, err := psi.Open(ctx, psi.Options{})
//	…
//	defer client.Close()
//	sb, err := client.Spawn(ctx, "guest42", psi.SpawnOptions{Policy: psi.Named("defaults")})
//	…
//	defer sb.Close(ctx, psi.Grace)
//	err = sb.Exec(ctx, "from math import sqrt; post(sqrt(2))")
//	value, err := sb.Recv(ctx) // float64(1.4142135623730951)
//	value, err = sb.Call(ctx, "math.hypot", 3, 4) // float64(5)
//
// A [Client] has a supervisor of its own (`psi-shim serve`, or `psi-shim bridge` for guests
// that an engine runs), or talks to a shared one. A [Sandbox] is the handle of one guest.
// Any goroutine may use either. Every wait takes a context; when that ends first, the
// error is a [*TimeoutError], which is also the context's own error.
//
// What a guest sends is data, of the types that package channel lists: nothing of it is
// executed, and it cannot make this process grow without bounds. While nobody receives,
// it is the guest that waits.
//
// Every error is [ErrSandbox]; errors.As tells a [*PolicyError], [*PolicyAuthError],
// [*TimeoutError], [*MemoryExceeded], [*CPUExceeded] and [*GuestError] apart, and gives the [*SandboxError]
// in each.
package psi
