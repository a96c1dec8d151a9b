package policy

import (
	"strings"
	"testing"
)

func TestParseEndpoint(t *testing.T) {
	for text, want := range map[string]string{
		"127.0.0.1:9200":               "127.0.0.1:9200",
		"[::1]:80":                     "[::1]:80",
		"[0:0:0:0:0:0:0:1]:80":         "[::1]:80",
		"[2001:DB8::00A]:443":          "[2001:db8::a]:443",
		"[::ffff:127.0.0.1]:80":        "127.0.0.1:80",
		"[::ffff:7f00:1]:80":           "127.0.0.1:80",
		"10.0.0.0/8:5432":              "10.0.0.0/8:5432",
		"0.0.0.0/0:443":                "0.0.0.0/0:443",
		"[::/0]:443":                   "[::/0]:443",
		"[fd00::/8]:443":               "[fd00::/8]:443",
		"[::ffff:10.0.0.0/104]:1":      "10.0.0.0/8:1",
		"10.0.0.1/32:80":               "10.0.0.1:80",
		"[::1/128]:80":                 "[::1]:80",
		"api.example.com:443":          "api.example.com:443",
		"*.Example.ORG.:443":           "*.example.org:443",
		"*.a_b.xn--bcher-kva.org:1-9":  "*.a_b.xn--bcher-kva.org:1-9",
		"127.0.0.1:8000-8100":          "127.0.0.1:8000-8100",
		"[fd00::/8]:1-65535":           "[fd00::/8]:1-65535",
		"127.64.0.0/15:80":             "127.64.0.0/15:80",
		"API.Example.COM.:443":         "api.example.com:443",
		"db:5432":                      "db:5432",
		"my_db-1:65535":                "my_db-1:65535",
		"xn--bcher-kva.example:1":      "xn--bcher-kva.example:1",
		"1.example:80":                 "1.example:80",
		"3com.com:80":                  "3com.com:80",
		"localhost.example.org:80":     "localhost.example.org:80",
		strings.Repeat("a", 63) + ":1": strings.Repeat("a", 63) + ":1",
	} {
		e, err := ParseEndpoint(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if e.String() != want {
			t.Errorf("%s is %s, want %s", text, e, want)
		}
		if again, err := ParseEndpoint(e.String()); err != nil || again != e {
			t.Errorf("%s: canonical form %s gives %v, %v", text, e, again, err)
		}
	}
}

func TestParseEndpointErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "has no port: write host:port",
		"127.0.0.1":                       "has no port",
		"[::1]":                           "has no port",
		":80":                             "has no host",
		".:80":                            "has no host",
		"::1:80":                          "without brackets: write [address]:port",
		"fd00::/8:443":                    "without brackets",
		"[127.0.0.1]:80":                  "remove the brackets",
		"[db]:80":                         "remove the brackets",
		"[::1:80":                         "without brackets",
		"127.0.0.1:":                      `has no valid port: ""`,
		"127.0.0.1:0":                     `has no valid port: "0"`,
		"127.0.0.1:080":                   `has no valid port`,
		"127.0.0.1:65536":                 `has no valid port: "65536"`,
		"127.0.0.1:-1":                    `has no valid port: "-1"`,
		"127.0.0.1:+80":                   `has no valid port: "+80"`,
		"127.0.0.1:https":                 `has no valid port: "https"`,
		"127.0.0.1: 80":                   `has no valid port: " 80"`,
		"127.0.0.1:90-80":                 "does not rise",
		"127.0.0.1:80-80":                 "does not rise",
		"127.0.0.1:80-":                   `has no valid port: "80-"`,
		"127.0.0.1:1-65536":               `has no valid port: "1-65536"`,
		"127.0.0.1:*":                     "write 1-65535 for every port",
		"*:443":                           "covers a whole top-level domain or every name",
		"*.org:443":                       "covers a whole top-level domain or every name",
		"a*.example.org:443":              "not the whole first part of the name",
		"*.*.example.org:443":             "not the whole first part of the name",
		"127.65.0.0/16:80":                "stand for names inside a guest",
		"[::ffff:127.65.1.1]:80":          "stand for names inside a guest",
		"https://example.org:443":         "is a URL",
		"https://example.org":             "is a URL",
		"0x7f.1:80":                       "neither a name nor an address",
		"0x7f000001:80":                   "neither a name nor an address",
		"2130706433:80":                   "neither a name nor an address",
		"127.1:80":                        "neither a name nor an address",
		"0177.0.0.1:80":                   "neither a name nor an address",
		"1.2.3.4.5:80":                    "neither a name nor an address",
		"1.2.3.256:80":                    "neither a name nor an address",
		"example.0x10:80":                 "neither a name nor an address",
		"localhost:9200":                  "write 127.0.0.1 or [::1]",
		"LOCALHOST.:9200":                 "write 127.0.0.1 or [::1]",
		"x.localhost:9200":                "write 127.0.0.1 or [::1]",
		"0.0.0.0:80":                      "is not the address of a host",
		"[::]:80":                         "is not the address of a host",
		"[::ffff:0.0.0.0]:80":             "is not the address of a host",
		"224.0.0.1:80":                    "address of many hosts",
		"*.bücher.example:80":             `write "*.xn--bcher-kva.example" if`,
		strings.Repeat("é", 1000) + ":80": "write its xn-- form",
		"224.0.0.0/4:80":                  "address of many hosts",
		"[ff00::/8]:80":                   "address of many hosts",
		"255.255.255.255:80":              "address of many hosts",
		"[fe80::1%eth0]:80":               "has a zone",
		"10.1.0.0/8:80":                   "has bits beyond its prefix: write 10.0.0.0/8",
		"10.0.0.0/33:80":                  "has no valid CIDR block",
		"10.0.0.0/08:80":                  "has no valid CIDR block",
		"10.0.0.0/:80":                    "has no valid CIDR block",
		"db/8:80":                         "has no valid CIDR block",
		"[::ffff:0:0/90]:80":              "mixes IPv4 and IPv6",
		"a..b:80":                         "empty or longer than 63",
		"-a.b:80":                         `has "-" in the name, or at an end`,
		"a-.b:80":                         `has "-"`,
		"a b:80":                          `has " " in the name`,
		"a\x00b:80":                       `has "\x00" in the name`,
		"a\n:80":                          `has "\n" in the name`,
		"bücher.example:80":               `write "xn--bcher-kva.example" if that is meant`,
		"\u212Aelvin.example:80":          `write "kelvin.example" if`,
		strings.Repeat("a", 64) + ":1":    "empty or longer than 63",
		strings.Repeat("a.", 130) + ":1":  "longer than 253",
	} {
		e, err := ParseEndpoint(text)
		if err == nil {
			t.Errorf("%q is accepted as %s", text, e)
			continue
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want …%s…", text, err, want)
		}
	}
}

func TestEndpointPrefix(t *testing.T) {
	for text, want := range map[string]string{
		"127.0.0.1:1":     "127.0.0.1/32",
		"[::1]:1":         "::1/128",
		"10.0.0.0/8:1":    "10.0.0.0/8",
		"[fd00::/8]:1":    "fd00::/8",
		"a.example.org:1": "",
	} {
		e, err := ParseEndpoint(text)
		if err != nil {
			t.Fatal(err)
		}
		prefix, ok := e.Prefix()
		if ok != (want != "") || ok && prefix.String() != want {
			t.Errorf("%s: %v, %v, want %s", text, prefix, ok, want)
		}
	}
}
