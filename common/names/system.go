package names

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// attempts is how often a datagram with a question is sent: either way may lose one.
	attempts = 2

	// attemptTime is how long an answer is waited for, each time. A connection waits
	// two seconds for its key (echWait in front): both attempts and the start of TCP,
	// or of the next resolver, are to be within them.
	attemptTime = 700 * time.Millisecond
)

// errNoServers says that the system does not tell where its resolvers are.
var errNoServers = errors.New("ech: the system's resolver is not known here: name one by doh=")

// System asks the system's resolvers for the ECHConfigList of a host, as DNS has
// been asked since RFC 1035, nil if it has none. It needs /etc/resolv.conf.
func System(ctx context.Context, host string) ([]byte, error) {
	text, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil, errNoServers
	}
	last := errNoServers
	for _, server := range serversIn(string(text)) {
		found, err := askSystem(ctx, server, host)
		if err == nil {
			return found, nil
		}
		last = err
	}
	return nil, last
}

// serversIn are the resolvers that the text of a resolv.conf names, three at most as
// in resolv.conf(5).
func serversIn(text string) []netip.AddrPort {
	var found []netip.AddrPort
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" || len(found) == 3 {
			continue
		}
		if addr, err := netip.ParseAddr(f[1]); err == nil {
			found = append(found, netip.AddrPortFrom(addr, 53))
		}
	}
	return found
}

// askSystem asks one resolver for the ECHConfigList of a host.
func askSystem(ctx context.Context, server netip.AddrPort, host string) ([]byte, error) {
	id := uint16(rand.Uint32())
	message, err := question(host, dnsmessage.TypeHTTPS, id)
	if err != nil {
		return nil, err
	}
	answer, err := byDatagram(ctx, server, message)
	if err == nil && isTruncated(answer) {
		answer, err = byStream(ctx, server, message)
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return nil, &net.DNSError{Err: "the system's resolver does not answer", Name: host, IsTimeout: true}
	}
	if err != nil {
		return nil, err
	}
	resources, err := parse(answer, host, id)
	return echIn(resources), err
}

// byDatagram returns a resolver's answer by UDP.
func byDatagram(ctx context.Context, server netip.AddrPort, message []byte) ([]byte, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	buf := make([]byte, maxMessage)
	for range attempts {
		if _, err = conn.Write(message); err != nil {
			return nil, err
		}
		conn.SetReadDeadline(time.Now().Add(attemptTime)) //nolint:errcheck // it is open
		var n int
		for err == nil {
			if n, err = conn.Read(buf); err == nil && isAnswer(buf[:n], message) {
				return buf[:n], nil
			}
		}
	}
	return nil, err
}

// isAnswer tells whether a datagram answers a question. Whoever guesses the port but
// not the number of the question can neither answer it nor end it.
func isAnswer(datagram, question []byte) bool {
	return len(datagram) >= 2 && bytes.Equal(datagram[:2], question[:2])
}

// isTruncated tells whether more was to be said than fits into a datagram. What
// there is of it need not make sense.
func isTruncated(answer []byte) bool {
	header, err := new(dnsmessage.Parser).Start(answer)
	return err == nil && header.Truncated
}

// byStream returns a resolver's answer by TCP, where each message follows its length
// (RFC 7766 section 8).
func byStream(ctx context.Context, server netip.AddrPort, message []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })() //nolint:errcheck // it is open
	// One write: some resolvers want the length and the message in one segment.
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	answer := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err = io.ReadFull(conn, answer)
	return answer, err
}
