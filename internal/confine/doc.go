// Package confine puts on a container's process what no OCI runtime can: a second
// seccomp filter beside the container's own, and a Landlock domain.
//
// libcontainer loads one filter and knows no Landlock. Both have to be put on by the
// process itself, inside the container, after its mounts are made and before its
// program begins. So the process's arguments are wrapped in psi-init, a static program
// of 4 kB without a C library (psi-init.c, compiled and committed: see below):
//
//	process.args                      ls -l
//	[Confinement.Wrap] makes of it    /proc/self/fd/3  3 3728 812  ls -l
//	                                  └── a sealed memfd: psi-init, and behind it its orders
//
// psi-init obeys the orders, closes the descriptor and executes the program. It is
// passed by descriptor and not by path, so that nothing in the image can take its
// place; that asks for a real /proc in the container, which [CheckProc] makes sure of
// before the program is started.
//
// Filters are stacked, never merged: the kernel takes the strictest answer. The process
// gets no_new_privs, without which it may not filter itself.
//
// Why C: in 500 interleaved starts around a static program that does nothing (0.76 ms,
// median, on a busy machine) psi-init cost 0.07 ms more and a static Go program that does
// the same 1.9 ms more. It is 3.7 kB against 1.5 MB, and has one thread where Go needs
// several, which a limit of processes may not allow.
//
// The package decides nothing: which filters and which paths is its callers' business.
// Do not use it for what an OCI configuration can say itself.
package confine

//go:generate clang -O2 -Wall -Wextra -Werror -std=gnu11 -ffreestanding -fno-builtin -fno-stack-protector -fno-pie -fno-asynchronous-unwind-tables -fno-ident -static -nostdlib -Wl,--build-id=none,-z,noseparate-code,-z,norelro,--strip-all -o psi-init_amd64 psi-init.c
