package supervisor

import (
	"fmt"
	"testing"
)

// BenchmarkSpawnReady is a cold spawn through a running supervisor until the agent's
// READY, one after another; closing is not counted.
func BenchmarkSpawnReady(b *testing.B) {
	_, c := embedded(b)
	i := 0
	for b.Loop() {
		a := c.must(b, map[string]any{"op": "spawn", "name": fmt.Sprint("g", i)})
		g, err := newTestGuest(a)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = g.channel.Close()
		c.must(b, map[string]any{"op": "kill", "guest": g.id})
		b.StartTimer()
		i++
	}
}
