package policy_test

import (
	"fmt"

	"github.com/psi-runtime/psi/pkg/policy"
)

func Example() {
	p, err := policy.Parse([]byte("mem: 256MiB\nfs: [/srv/data/*.parquet]\n"), "etl.yml")
	if err != nil {
		fmt.Println(err)
		return
	}
	wider, err := p.AllowTCP("127.0.0.1:9200")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(p.FS(), p.TCP())
	fmt.Println(wider.FS(), wider.TCP())
	// Output:
	// [{read /srv/data/*.parquet}] []
	// [{read /srv/data/*.parquet}] [127.0.0.1:9200]
}

func ExampleParse_error() {
	_, err := policy.Parse([]byte("memory: 256MiB\n"), "etl.yml")
	fmt.Println(err)
	_, err = policy.Parse([]byte("fs:\n  - /srv/data\n  - data/*.csv\n"), "etl.yml")
	fmt.Println(err)
	// Output:
	// etl.yml:1:1: "memory": is not a key of a policy: the keys are read_only, allow_degraded, cpu, fs, tcp, udp, expose, imports, mem, cpu_ms, wall_ms, pids, open_files, tmp, message, output, net_conns, net_rate, net_bytes, seccomp, isolation, preload (did you mean "mem"?)
	// etl.yml:3:5: fs: "data/*.csv": is not absolute: begin it with /, such as /srv/data/*.csv
}

func ExampleMatch() {
	fmt.Println(policy.Match("/srv/**/*.csv", "/srv/2024/may/a.csv"))
	fmt.Println(policy.Match("/srv/*.csv", "/srv/2024/a.csv"))
	// Output:
	// true
	// false
}

func ExamplePolicy_WithLimits() {
	p := policy.Defaults()
	limits := p.Limits()
	limits.PIDs = 8
	p, err := p.WithLimits(limits)
	fmt.Println(p.Limits().PIDs, err)
	// Output: 8 <nil>
}
