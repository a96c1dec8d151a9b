// Package bpf holds psi's eBPF programs as C, and as the Go that bpf2go makes of
// them: the object file embedded, and its maps and programs by name.
//
//	net.bpf.c    the network policy of a guest, attached to its cgroup
//	pairs.bpf.c  pairs of datagram sockets, at the cgroup too
//	net.h        what both share
//	lookup.bpf.c ranges of ports of a guest's network namespace
//	events.h     how a denial becomes an event, for every program that denies
//	lsm.bpf.c    the file rules of guests, and what no guest may do (LSM hooks)
//	path.h       the automaton that decides about paths
//	match.bpf.c  the same, as a program for tests
//	sched.bpf.c  when a guest is held back by its cpu limit
//	image.go     an object without its file: net_image.go and pairs_image.go, for commands that live for a moment
//
// The programs decide nothing by themselves. Their tables are written by
// internal/enforce, the only package that imports this one; read its comment
// for how a policy gets into the kernel, and the C files for what the kernel then
// does with it.
//
// The generated files are committed, so that building psi needs no clang.
// `go generate ./bpf` makes them again (Debian: clang, llvm, libbpf-dev), and CI
// fails when the result differs. One object serves every little-endian machine.
// The network programs need no kernel types and run from Linux 5.15 on; those of
// lsm.bpf.c and sched.bpf.c are relocated (CO-RE) when they are loaded, and need 6.1. Those
// of pairs.bpf.c need 6.7.
package bpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang -strip llvm-strip -target bpfel -type guest -type port -type endpoint -type event -type account -go-package bpf Net net.bpf.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu
//go:generate go run ./mkimage netImage net_bpfel.o net_image.go
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang -strip llvm-strip -target bpfel -go-package bpf Pairs pairs.bpf.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu
//go:generate go run ./mkimage pairsImage pairs_bpfel.o pairs_image.go
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang -strip llvm-strip -target bpfel -type port -type steer -go-package bpf Lookup lookup.bpf.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang -strip llvm-strip -target bpfel -type guest -type depth_list -type account -go-package bpf LSM lsm.bpf.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -D__TARGET_ARCH_x86 -I/usr/include/x86_64-linux-gnu
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang -strip llvm-strip -target bpfel -type path_question -go-package bpf Match match.bpf.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang -strip llvm-strip -target bpfel -type guest -type throttle -go-package bpf Sched sched.bpf.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -D__TARGET_ARCH_x86 -I/usr/include/x86_64-linux-gnu
