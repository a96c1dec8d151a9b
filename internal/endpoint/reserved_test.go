package endpoint_test

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/psi-runtime/psi/internal/endpoint"
)

func TestRefuseResolved(t *testing.T) {
	for addr, want := range map[string]string{
		"8.8.8.8":                  "",
		"2606:4700:4700::1111":     "",
		"64:ff9b::808:808":         "", // the only way to IPv4 on some networks
		"2002:808:808::1":          "",
		"::ffff:8.8.8.8":           "",
		"127.0.0.1":                "loopback",
		"127.8.9.10":               "loopback",
		"::1":                      "loopback",
		"::ffff:127.0.0.1":         "loopback",
		"64:ff9b::7f00:1":          "loopback",
		"2002:7f00:1::":            "loopback",
		"::127.0.0.1":              "unspecified",
		"127.65.0.1":               "reserved for names",
		"0.0.0.0":                  "unspecified",
		"0.1.2.3":                  "unspecified",
		"::":                       "unspecified",
		"::ffff:0.0.0.0":           "unspecified",
		"10.1.2.3":                 "private",
		"172.31.255.255":           "private",
		"192.168.0.1":              "private",
		"::ffff:192.168.0.1":       "private",
		"64:ff9b::c0a8:1":          "private",
		"100.64.0.1":               "private (shared by a provider)",
		"fd12::1":                  "private",
		"169.254.0.1":              "link-local",
		"169.254.169.254":          "a cloud's metadata service",
		"::ffff:169.254.169.254":   "a cloud's metadata service",
		"64:ff9b::169.254.169.254": "a cloud's metadata service",
		"100.100.100.200":          "a cloud's metadata service",
		"fd00:ec2::254":            "a cloud's metadata service",
		"fe80::1":                  "link-local",
		"fe80::1%eth0":             "link-local",
		"224.0.0.1":                "multicast",
		"ff02::1":                  "multicast",
		"255.255.255.255":          "reserved",
		"240.0.0.1":                "reserved",
		"64:ff9b:1::1":             "a translated IPv4 address",
		"2001::1":                  "a tunnelled IPv4 address",
	} {
		parsed := netip.MustParseAddr(addr)
		if got := endpoint.RefuseResolved(parsed, false); got != want {
			t.Errorf("%s: %q, want %q", addr, got, want)
		}
		// private: true permits what a host finds around it, and nothing that is no address of one host.
		permits := want == "" || want == "loopback" || strings.HasPrefix(want, "private") || want == "link-local" || want == "a cloud's metadata service"
		if got := endpoint.RefuseResolved(parsed, true); (got == "") != permits {
			t.Errorf("%s with private: %q", addr, got)
		}
	}
	if endpoint.RefuseResolved(netip.Addr{}, true) == "" {
		t.Error("the zero address is not refused")
	}
}

func TestSynthetic(t *testing.T) {
	names := []string{"b.example", "a.example", "c.example", "a.example"}
	first, err := endpoint.Synthetic(names, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := endpoint.Synthetic([]string{"c.example", "a.example", "b.example"}, nil)
	if err != nil || !maps.Equal(first, again) {
		t.Errorf("the order of the names matters: %v, %v (%v)", first, again, err)
	}
	more, err := endpoint.Synthetic([]string{"a.example", "d.example"}, first)
	if err != nil {
		t.Fatal(err)
	}
	for name, addr := range first {
		if more[name] != addr {
			t.Errorf("%s moved from %s to %s", name, addr, more[name])
		}
	}
	checkDistinct(t, more, 4)
}

func checkDistinct(t *testing.T, addrs map[string]netip.Addr, want int) {
	t.Helper()
	seen := make(map[netip.Addr]bool)
	for name, addr := range addrs {
		if b := addr.As4(); !endpoint.SyntheticRange().Contains(addr) || endpoint.DynamicRange().Contains(addr) || b[2] == 0 && b[3] == 0 || b[2] == 127 && b[3] == 255 {
			t.Fatalf("%s has %s", name, addr)
		}
		seen[addr] = true
	}
	if len(addrs) != want || len(seen) != want {
		t.Errorf("%d names, %d addresses, want %d of both", len(addrs), len(seen), want)
	}
}

func TestSyntheticFillsTheRange(t *testing.T) {
	var names []string
	for i := range 1<<15 - 2 {
		names = append(names, fmt.Sprintf("n%d.example", i))
	}
	all, err := endpoint.Synthetic(names, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkDistinct(t, all, 1<<15-2)
	if _, err := endpoint.Synthetic([]string{"one.too.many"}, all); err == nil {
		t.Error("one name more than there are addresses: no error")
	}
}
