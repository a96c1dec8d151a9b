// Command go is the first example of the documentation, from Go: one guest, one line of
// code, one result.
//
//	sudo PSI_SHIM=bin/psi-shim PSI_ROOTFS=build/rootfs go run ./examples/go
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/psi-runtime/psi/pkg/psi"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	client, err := psi.Open(ctx, psi.Options{})
	if err != nil {
		return err
	}
	defer client.Close()
	sb, err := client.Spawn(ctx, "guest42", psi.SpawnOptions{Policy: psi.Named("defaults")})
	if err != nil {
		return err
	}
	if err := sb.Exec(ctx, "from math import sqrt; post(sqrt(2))"); err != nil {
		return err
	}
	value, err := sb.Recv(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("sqrt(2), computed by the guest:  %.10f\n", value)

	_, err = sb.Call(ctx, "int", "forty-two")
	var guest *psi.GuestError
	if errors.As(err, &guest) {
		fmt.Printf("what its code raised:            %s: %s\n", guest.Type, guest.Message)
	}
	stats, err := sb.Stats(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("what it used:                    %v of cpu, %.1f MiB of memory\n", stats.CPU.Round(time.Millisecond), float64(stats.Mem)/(1<<20))

	greedy, err := client.Spawn(ctx, "greedy", psi.SpawnOptions{Policy: psi.Document("mem: 64MiB")})
	if err != nil {
		return err
	}
	if err := greedy.Exec(ctx, "x = bytearray(200 << 20)"); err != nil {
		return err
	}
	_, err = greedy.Recv(ctx)
	var memory *psi.MemoryExceeded
	if errors.As(err, &memory) {
		fmt.Printf("what stops one that wants more:  %v\n", memory)
	}
	return sb.Close(ctx, psi.Grace)
}
