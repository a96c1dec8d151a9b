package enforce_test

import (
	"os"
	"testing"

	"github.com/psi-runtime/psi/internal/enforce"
)

func BenchmarkLoadAndAttach(b *testing.B) {
	dir := newCgroup(b)
	for b.Loop() {
		g, err := enforce.Attach(dir, endpoints(b, "127.0.0.1:80", "10.0.0.0/8:443"), nil)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := g.Close(); err != nil {
			b.Fatal(err)
		}
		removeCgroup(b, dir)
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkAttach(b *testing.B) {
	dir := newCgroup(b)
	p := load(b)
	for b.Loop() {
		g, err := p.Attach(dir, endpoints(b, "127.0.0.1:80", "10.0.0.0/8:443"), nil)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := g.Close(); err != nil {
			b.Fatal(err)
		}
		removeCgroup(b, dir)
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkUpdate(b *testing.B) {
	p := load(b)
	g := attach(b, p, newCgroup(b), "127.0.0.1:80")
	eps := endpoints(b, "127.0.0.1:80", "10.0.0.0/8:443")
	for b.Loop() {
		if err := g.Update(eps, nil); err != nil {
			b.Fatal(err)
		}
	}
}
