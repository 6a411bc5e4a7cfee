package engines

import (
	"math"
	"net"
	"testing"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/enginetest"
)

func TestTable(t *testing.T) {
	seen := make(map[string]bool)
	for _, name := range Names() {
		if seen[name] {
			t.Errorf("two engines are called %q", name)
		}
		seen[name] = true
		if e, ok := Find(name); !ok || e.Name() != name {
			t.Errorf("Find(%q) = %v, %v", name, e, ok)
		}
	}
	if names := Names(); names[0] != Default {
		t.Errorf("the first of %q is not the default %q", names, Default)
	}
	for _, name := range []string{"", "KCP", "none"} {
		if _, ok := Find(name); ok {
			t.Errorf("Find(%q) found an engine", name)
		}
	}
}

// connectUDP returns two sockets on loopback. What does not fit into their
// buffers is lost.
func connectUDP(t *testing.T) (client, server engine.Carrier) {
	var sockets [2]*net.UDPConn
	for i := range sockets {
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadBuffer(4 << 20); err != nil { // the system takes as much of it as it allows
			t.Fatal(err)
		}
		sockets[i] = c
	}
	return &overUDP{sockets[0], sockets[1].LocalAddr()}, &overUDP{sockets[1], sockets[0].LocalAddr()}
}

// overUDP is a Carrier that is nothing but a socket.
type overUDP struct {
	*net.UDPConn
	peer net.Addr
}

func (o *overUDP) RemoteAddr() net.Addr { return o.peer }
func (*overUDP) WaitRead()              {}
func (*overUDP) Binding() []byte        { return nil }
func (*overUDP) Hold(int)               {}
func (*overUDP) Promise(int) int        { return math.MaxInt }

// TestUDP: sockets in place of the carrier.
func TestUDP(t *testing.T) {
	for _, e := range all {
		t.Run(e.Name(), func(t *testing.T) { enginetest.RunOver(t, e, 8<<20, connectUDP) })
	}
}
