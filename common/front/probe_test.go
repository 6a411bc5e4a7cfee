package front

import (
	"net/netip"
	"testing"
)

func TestIsOdd(t *testing.T) {
	for addr, want := range map[string]bool{
		"10.10.34.35": true, "127.0.0.1": true, "0.0.0.0": true, "169.254.1.1": true, "100.64.0.1": true, "192.0.2.7": true,
		"::ffff:10.0.0.1": true, "::1": true, "fe80::1": true, "fd00::1": true, "2001:db8::1": true, "224.0.0.1": true,
		"8.8.8.8": false, "100.128.0.1": false, "2606:4700::1111": false, "::ffff:8.8.8.8": false,
	} {
		if got := IsOdd(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}
