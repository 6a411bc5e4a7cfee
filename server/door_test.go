package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// addrConn is a connection from somewhere.
type addrConn struct {
	net.Conn
	from net.Addr
}

func (c addrConn) RemoteAddr() net.Addr { return c.from }

// A crowd is many who come to a door.
type crowd struct {
	t  *testing.T
	ln *pipeListener
	d  *door
}

func newCrowd(t *testing.T, most int) *crowd {
	log, _ := newLog()
	ln := newPipeListener()
	return &crowd{t, ln, newDoor(ln, most, 1<<20, log)}
}

// come has somebody come from an address, and returns both ends.
func (c *crowd) come(from string) (far net.Conn, v *visitor) {
	c.t.Helper()
	far, near := net.Pipe()
	peer := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 5000))
	go func() { c.ln.conns <- addrConn{near, peer} }()
	got, err := c.d.Accept()
	if err != nil {
		c.t.Fatal(err)
	}
	time.Sleep(time.Millisecond) // the order in which they come
	return far, got.(*visitor)
}

// is tells whether v's connection is still open.
func (c *crowd) is(v *visitor) bool {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	_, ok := c.d.visitors[v]
	return ok
}

// One address cannot occupy all connections: its idlest goes for a newcomer,
// whatever others do.
func TestNewcomersAreNotRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 8)
		defer c.d.Close()
		_, idle := c.come("192.0.2.1")
		_, client := c.come("192.0.2.1")
		client.isKnown()
		var crowd []*visitor
		for range 6 {
			_, v := c.come("2001:db8::1")
			crowd = append(crowd, v)
		}
		for _, from := range []string{"192.0.2.2", "2001:db8::2", "192.0.2.3"} {
			c.come(from)
		}
		if !c.is(client) || !c.is(idle) {
			t.Error("somebody else's connection was closed")
		}
		for i, v := range crowd {
			if c.is(v) != (i >= 3) {
				t.Errorf("connection %d of the crowd: open is %v", i, c.is(v))
			}
		}
		if n := c.d.closed.Load(); n != 3 || c.d.open() != 8 {
			t.Errorf("%d were closed, %d are open", n, c.d.open())
		}
	})
}

// Of strangers from many places the idlest goes; where there are only clients,
// of who has more than his part; proxies never.
func TestWhoGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 4)
		c.d.trusted = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		defer c.d.Close()
		_, proxy := c.come("10.1.1.1")
		far, busy := c.come("192.0.2.1")
		_, idle := c.come("192.0.2.2")
		go io.WriteString(far, "x")
		if _, err := busy.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		_, last := c.come("192.0.2.3")
		_, next := c.come("192.0.2.4")
		if c.is(idle) || !c.is(busy) || !c.is(proxy) || !c.is(last) {
			t.Error("it was not the idlest who went")
		}
		for _, v := range []*visitor{busy, last, next} {
			v.isKnown()
		}
		// All are clients' or a proxy's, and none has more than others: who comes
		// waits for one to go.
		came := make(chan *visitor)
		go func() {
			_, v := c.come("192.0.2.5")
			came <- v
		}()
		synctest.Wait()
		select {
		case <-came:
			t.Fatal("a client's connection was closed for a stranger's")
		default:
		}
		last.Close()
		<-came
	})
}

// Who connects through a proxy that speaks the PROXY protocol is known later.
func TestLateAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 4)
		c.d.late = true
		defer c.d.Close()
		far, v := c.come("192.0.2.1")
		if v.placed.Load() {
			t.Error("the address was asked for before anything came")
		}
		go io.WriteString(far, "x")
		if _, err := v.Read(make([]byte, 1)); err != nil || v.network != netip.MustParsePrefix("192.0.2.1/32") {
			t.Errorf("network %v, %v", v.network, err)
		}
	})
}

// What is held is bounded: who holds most is cut off, strangers first.
func TestWhoHoldsMostGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 8)
		defer c.d.Close()
		_, client := c.come("192.0.2.1")
		client.isKnown()
		_, small := c.come("192.0.2.2")
		_, large := c.come("192.0.2.3")
		client.hold(600 << 10)
		small.hold(200 << 10)
		large.hold(300 << 10)
		if !c.is(client) || !c.is(small) || c.is(large) {
			t.Error("it was not the stranger with most who went")
		}
		large.hold(-300 << 10) // too late
		client.hold(300 << 10)
		if c.is(small) || !c.is(client) {
			t.Error("a client went before a stranger")
		}
		client.hold(300 << 10)
		if c.is(client) || c.d.held.Load() != 0 {
			t.Errorf("%d bytes are held", c.d.held.Load())
		}
	})
}

// Where many hold a little each, they are not looked through for every byte; who
// holds much still goes.
func TestManyHoldLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 40)
		defer c.d.Close()
		const little = 60 << 10
		var all []*visitor
		for c.d.held.Load() <= c.d.mostHeld {
			_, v := c.come("192.0.2.1")
			v.hold(little)
			all = append(all, v)
		}
		spared := c.d.spared.Load()
		all[0].hold(1)
		if spared == 0 || c.d.spared.Load() != spared {
			t.Errorf("all were looked through again for a byte: %d, %d", spared, c.d.spared.Load())
		}
		_, large := c.come("192.0.2.2")
		large.hold(200 << 10)
		if c.is(large) || !c.is(all[0]) {
			t.Error("who holds much is kept")
		}
		for _, v := range all {
			v.hold(-little)
		}
		if c.d.spared.Load() != 0 {
			t.Error("more than the limit may be held though nobody holds anything")
		}
	})
}

// Whoever keeps the connections of a trusted proxy busy with requests that show no
// client keeps nobody out: those that have been so for the longest go.
func TestStrangersBehindProxy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 4)
		c.d.trusted = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		defer c.d.Close()
		_, idle := c.come("10.0.0.1")
		_, client := c.come("10.0.0.1")
		client.begins(true)
		client.isKnown()
		_, first := c.come("10.0.0.1")
		first.begins(true)
		_, second := c.come("10.0.0.1")
		second.begins(true)
		start := time.Now()
		c.come("10.0.0.1")
		if took := time.Since(start); took < proxiedTime-time.Second || took > proxiedTime+2*lookEvery {
			t.Errorf("a newcomer waits for %v", took)
		}
		if c.is(first) || !c.is(second) || !c.is(idle) || !c.is(client) {
			t.Errorf("kept: of strangers the first %v, the second %v; the idle one %v, the client's %v",
				c.is(first), c.is(second), c.is(idle), c.is(client))
		}
		second.begins(false)
		time.Sleep(time.Hour)
		if all := c.d.choose(); len(all) != 0 {
			t.Errorf("%d idle connections of the proxy would go", len(all))
		}
	})
}

// Heads that are not whole are counted at what they take, and who has most of that
// goes; when a request is there it is counted no more.
func TestHeadsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 100)
		c.d.mostHeld = 4 << 20
		log, _ := newLog()
		web := newWebServer(http.NotFoundHandler(), nil, log)
		done := make(chan error)
		go func() { done <- serveWeb(web, c.d) }()
		var all []net.Conn
		dial := func() net.Conn {
			near, far := net.Pipe()
			c.ln.conns <- addrConn{far, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}}
			all = append(all, near)
			return near
		}
		for range 50 {
			go io.WriteString(dial(), "GET / HTTP/1.1\r\nHost: a\r\n"+strings.Repeat("x", 30<<10))
			synctest.Wait()
		}
		if held, open := c.d.held.Load(), c.d.open(); held > c.d.mostHeld || held < c.d.mostHeld/2 || open != int(held/(headCost*30<<10)) {
			t.Errorf("%d connections have %d bytes of heads", open, held)
		}
		for _, conn := range all {
			conn.Close()
		}
		synctest.Wait()
		conn := dial()
		for _, body := range []string{"", strings.Repeat("x", 100<<10)} {
			go fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || resp.StatusCode != http.StatusNotFound {
				t.Fatal(resp, err)
			}
			io.Copy(io.Discard, resp.Body)
		}
		synctest.Wait()
		if held := c.d.held.Load(); held != 0 {
			t.Errorf("%d bytes are held after requests that were answered", held)
		}
		conn.Close()
		web.Close()
		<-done
	})
}

// A tiredListener fails a few times.
type tiredListener struct {
	*pipeListener
	left atomic.Int64
}

func (l *tiredListener) Accept() (net.Conn, error) {
	if l.left.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.pipeListener.Accept()
}

// When there is no descriptor the listener rests longer and longer, says so
// once, and goes on.
func TestAcceptRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, text := newLog()
		ln := &tiredListener{pipeListener: newPipeListener()}
		const failures = 12
		ln.left.Store(failures)
		d := newDoor(ln, 1, 1<<20, log)
		start := time.Now()
		go ln.dial()
		if _, err := d.Accept(); err != nil {
			t.Fatal(err)
		}
		if rested := time.Since(start); rested < 4*longestRest || rested > failures*longestRest {
			t.Errorf("it rested for %v", rested)
		}
		if n := strings.Count(text.String(), "raise the limit of open files"); n != 1 || d.failed.Load() != failures {
			t.Errorf("%d lines in the log, %d counted", n, d.failed.Load())
		}
		ln.left.Store(1 << 30)
		go func() {
			time.Sleep(time.Minute)
			d.Close()
		}()
		if _, err := d.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a closed door: %v", err)
		}
	})
}

// One address that holds all connections idle keeps no request from being
// answered.
func TestIdleStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 16)
		log, _ := newLog()
		web := newWebServer(http.NotFoundHandler(), nil, log)
		done := make(chan error)
		go func() { done <- serveWeb(web, c.d) }()
		dial := func(from string) net.Conn {
			near, far := net.Pipe()
			c.ln.conns <- addrConn{far, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 5000))}
			return near
		}
		ask := func(conn net.Conn) {
			t.Helper()
			go io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			line := make([]byte, len("HTTP/1.1 404"))
			if _, err := io.ReadFull(conn, line); err != nil || string(line) != "HTTP/1.1 404" {
				t.Errorf("answer %q, %v", line, err)
			}
			go io.Copy(io.Discard, conn)
		}
		for range 40 {
			ask(dial("192.0.2.1"))
		}
		ask(dial("192.0.2.2"))
		if n := c.d.open(); n > 16 {
			t.Errorf("%d are open", n)
		}
		web.Close()
		<-done
	})
}
