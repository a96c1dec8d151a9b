package policy

import "testing"

// everyKind has one rule of each kind.
const everyKind = `
mem: 256MiB
cpu: 0.5
imports: [json, math, csv]
fs: ["/srv/in/**/*.csv", {write: "/srv/out/*.json"}, {deny: "/srv/in/secret/**"}]
tcp: ["127.0.0.1:9200", "db.example.org:5432"]
`

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		if _, err := Parse([]byte(everyKind), "bench"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompileGuest(b *testing.B) {
	p, err := Parse([]byte(everyKind), "bench")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := CompileGuest(nil, p.FS(), nil); err != nil {
			b.Fatal(err)
		}
	}
}
