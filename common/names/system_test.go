package names

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A systemResolver answers on one port by UDP and by TCP.
type systemResolver struct {
	zone
	datagrams func(answer []byte) [][]byte // what comes for an answer by UDP
	streams   int                          // questions by TCP; to be read after stop
}

// start serves until stop, which waits for the end.
func (s *systemResolver) start(t *testing.T) (addr netip.AddrPort, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenPacket("udp", ln.Addr().String())
	if err != nil {
		ln.Close()
		t.Skip("no port is free for both UDP and TCP: ", err)
	}
	var group sync.WaitGroup
	group.Go(func() { s.serveDatagrams(t, conn) })
	group.Go(func() { s.serveStreams(t, ln) })
	return ln.Addr().(*net.TCPAddr).AddrPort(), func() {
		conn.Close()
		ln.Close()
		group.Wait()
	}
}

func (s *systemResolver) serveDatagrams(t *testing.T, conn net.PacketConn) {
	buf := make([]byte, maxMessage)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		for _, datagram := range s.datagrams(s.answer(t, buf[:n])) {
			conn.WriteTo(datagram, from) //nolint:errcheck // who asks notices
		}
	}
}

func (s *systemResolver) serveStreams(t *testing.T, ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		s.streams++
		var length [2]byte
		io.ReadFull(c, length[:]) //nolint:errcheck // who asks notices
		message := make([]byte, binary.BigEndian.Uint16(length[:]))
		io.ReadFull(c, message) //nolint:errcheck // likewise
		answer := s.answer(t, message)
		c.Write(binary.BigEndian.AppendUint16(nil, uint16(len(answer)))) //nolint:errcheck // likewise
		c.Write(answer)                                                  //nolint:errcheck // likewise
		c.Close()
	}
}

// truncated is an answer of which nothing but the start has room.
func truncated(answer []byte) []byte {
	const tc = 2 // in the third byte (RFC 1035 section 4.1.1)
	cut := slices.Clone(answer[:20])
	cut[2] |= tc
	return cut
}

// ofAnother is the answer to another question.
func ofAnother(answer []byte) []byte {
	other := slices.Clone(answer)
	binary.BigEndian.PutUint16(other, binary.BigEndian.Uint16(other)+1)
	return other
}

// What the system's resolver says counts, however much it is; what answers another
// question does not, and neither does it end the wait.
func TestSystem(t *testing.T) {
	long := strings.Repeat("a list ", 1000)
	for name, c := range map[string]struct {
		list      string
		datagrams func(answer []byte) [][]byte
		streams   int
	}{
		"short": {"a list", func(a []byte) [][]byte { return [][]byte{a} }, 0},
		"after nonsense": {"a list", func(a []byte) [][]byte {
			return [][]byte{{}, {1}, ofAnother(a), ofAnother(truncated(a)), a}
		}, 0},
		"long": {long, func(a []byte) [][]byte { return [][]byte{truncated(a)} }, 1},
		"none": {"", func(a []byte) [][]byte { return [][]byte{a} }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := &systemResolver{datagrams: c.datagrams}
			if c.list != "" {
				s.ech = []byte(c.list)
			}
			addr, stop := s.start(t)
			got, err := askSystem(t.Context(), addr, "front.example")
			stop()
			if string(got) != c.list || err != nil {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if s.streams != c.streams {
				t.Errorf("%d questions by TCP, want %d", s.streams, c.streams)
			}
		})
	}
}

// A question that got lost is sent again.
func TestSystemAsksAgain(t *testing.T) {
	asked := 0
	s := &systemResolver{zone: zone{ech: []byte("a list")}, datagrams: func(a []byte) [][]byte {
		if asked++; asked == 1 {
			return nil
		}
		return [][]byte{a}
	}}
	addr, stop := s.start(t)
	defer stop()
	if got, err := askSystem(t.Context(), addr, "front.example"); string(got) != "a list" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// Who has given up is not answered, neither by UDP nor by TCP.
func TestSystemGivenUp(t *testing.T) {
	s := &systemResolver{datagrams: func([]byte) [][]byte { return nil }}
	addr, stop := s.start(t)
	defer stop()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := askSystem(ctx, addr, "front.example"); err == nil {
		t.Error("an answer by UDP")
	}
	if _, err := byStream(ctx, addr, []byte("question")); err == nil {
		t.Error("an answer by TCP")
	}
}

func TestServersIn(t *testing.T) {
	const text = "# comment\nsearch example\nnameserver 192.0.2.1\nnameserver fe80::1%eth0 \nnameserver\nnameserver x\n\tnameserver 2001:db8::1\nnameserver 192.0.2.9\n"
	var got []string
	for _, s := range serversIn(text) {
		got = append(got, s.String())
	}
	want := []string{"192.0.2.1:53", "[fe80::1%eth0]:53", "[2001:db8::1]:53"}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
