// Package enginetest holds the tests that every engine passes, and the
// in-memory datagram network they run on. Many of them run on any other
// network, too.
package enginetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"turbotunnel/common/engine"
)

// cases are the tests. Those that run anywhere need neither a fake clock nor a
// path of their choice, and each says something that only the network at hand can
// show. What fills many windows or takes many rounds is proven once, in fake time:
// over HTTP it took half of all the time of its package.
var cases = []struct {
	name     string
	anywhere bool
	streams  int // that a session needs to be able to have; 0: any number
	run      func(t *testing.T, on setup)
}{
	{"Echo", true, 0, testEcho},
	{"ServerSpeaksFirst", true, 0, testServerSpeaksFirst},
	{"OpenEarly", true, 0, testOpenEarly},
	{"IdleWriteLeavesAtOnce", false, 0, testIdleWrite},
	{"IdleIsSilent", false, 0, testIdleIsSilent},
	{"HalfClose", true, 0, testHalfClose},
	{"CloseDelivers", true, 0, testCloseDelivers},
	{"CloseStopsTheOtherSide", true, 0, testCloseStops},
	{"Reset", true, 0, testReset},
	{"CloseEndsTheOthersWrite", false, 0, testCloseEndsWrite},
	{"ReadBackpressure", true, 0, testBackpressure},
	{"Deadlines", true, 0, testDeadlines},
	{"WriteTimeoutKeepsOrder", false, 0, testWriteTimeout},
	{"CloseUnblocks", true, 0, testCloseUnblocks},
	{"CloseWithBlockedCarrier", false, 0, testCloseBlockedCarrier},
	{"SessionCloseIsSeen", true, 0, testSessionCloseIsSeen},
	{"CarrierFails", false, 0, testCarrierFails},
	{"Contexts", true, 0, testContexts},
	{"Garbage", false, 0, testGarbage},
	{"SmallQueue", false, 0, testSmallQueue},
	{"Stalls", false, 0, testStalls},
	{bulk, true, 0, testBulk},
	{"ThousandStreams", false, many, testThousandStreams},
	{"ManyAtOnce", true, many, testManyAtOnce},
	{"StalledStream", false, many, testStalledStream},
	{"LittleMemory", false, 0, testLittleMemory},
	{"ResetLeavesOthers", true, many, testResetLeavesOthers},
	{"SingleStream", true, 1, testSingleStream},
}

const (
	many = 1000
	bulk = "Bulk" // has a bubble for each path
)

// Run tests that eng does what package engine asks for. Each test has a
// network and a clock of its own (testing/synctest) and fails if a goroutine
// is left over.
func Run(t *testing.T, eng engine.Engine) { setup{eng: eng}.run(t) }

// RunOver runs the tests of Run that any network without faults can take, on
// the ends that connect returns for each session, in real time. The engine
// closes the ends; what else is left, connect ends by t.Cleanup. A goroutine
// that is left over after that fails the test. size is how many bytes go each
// way in the test of bulk.
func RunOver(t *testing.T, eng engine.Engine, size int, connect func(t *testing.T) (client, server engine.Carrier)) {
	setup{eng: eng, connect: connect, size: size}.run(t)
}

// A setup is what a test runs on.
type setup struct {
	eng     engine.Engine
	connect func(t *testing.T) (client, server engine.Carrier) // nil: Connect, and a fake clock
	size    int                                                // of bulk over connect, in bytes each way
	room    int                                                // bytes that the client may promise; 0: as many as it wants
}

func (on setup) run(t *testing.T) {
	for _, test := range cases {
		if on.connect != nil && !test.anywhere || test.streams == 1 && on.eng.Multiplexes() {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			switch {
			case test.streams == many && !on.eng.Multiplexes():
				t.Skipf("%s has one stream a session", on.eng.Name())
			case on.connect != nil:
				expectNoLeak(t)
				test.run(t, on)
			case test.name == bulk:
				test.run(t, on)
			default:
				Bubble(t, func(t *testing.T) { test.run(t, on) })
			}
		})
	}
}

// bubbles lets one bubble after the other have the process, see Bubble.
var bubbles sync.Mutex

// Bubble is synctest.Test for what uses engines. smux keeps channels in a pool of
// the process, and a channel that was made in one bubble must not be used in
// another. So there is one bubble at a time, and between two of them the pool is
// emptied: what it holds is gone after two garbage collections.
func Bubble(t *testing.T, run func(t *testing.T)) {
	t.Helper()
	bubbles.Lock()
	defer bubbles.Unlock()
	empty := func() {
		runtime.GC()
		runtime.GC()
	}
	empty()
	defer empty()
	synctest.Test(t, run)
}

// second is the unit of what a test waits for: on a real clock it is short.
func (on setup) second() time.Duration {
	if on.connect != nil {
		return 5 * time.Millisecond
	}
	return time.Second
}

// pass lets d pass on a fake clock. A test that calls it holds without, too.
func (on setup) pass(d time.Duration) {
	if on.connect == nil {
		time.Sleep(d)
	}
}

// expectPassed fails if, on a fake clock, other than d has passed since start.
func (on setup) expectPassed(t *testing.T, what string, start time.Time, d time.Duration) {
	t.Helper()
	if got := time.Since(start); on.connect == nil && got != d {
		t.Errorf("%s took %v; want %v", what, got, d)
	}
}

// expectNoLeak fails the test if at its end, after everything that it cleans
// up later, there are goroutines that were not there before.
func expectNoLeak(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		// net/http's end some time after what they belong to.
		err := goleak.Find(before)
		for deadline := time.Now().Add(30 * time.Second); err != nil && time.Now().Before(deadline); {
			err = goleak.Find(before) // tries for about a second
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// pair is a session with both its ends.
type pair struct {
	setup
	t              *testing.T
	a, b           *Conn          // nil over another network
	far            engine.Carrier // the server's
	client, server engine.Session
}

var ordinary = Path{Delay: 50 * time.Millisecond}

// newPair starts both ends of a session. The paths are those of the in-memory
// network.
func newPair(t *testing.T, on setup, up, down Path) *pair {
	t.Helper()
	p := newClient(t, on, up, down)
	p.serve()
	return p
}

// newClient is newPair without the server's end, which serve starts.
func newClient(t *testing.T, on setup, up, down Path) *pair {
	t.Helper()
	p := &pair{setup: on, t: t}
	var near engine.Carrier
	if on.connect != nil {
		near, p.far = on.connect(t)
	} else {
		p.a, p.b = Connect(up, down, 1)
		if on.room > 0 {
			p.a.SetRoom(on.room)
		}
		near, p.far = p.a, p.b
	}
	var err error
	if p.client, err = on.eng.Client(near); err != nil {
		t.Fatalf("Client: %v", err)
	}
	t.Cleanup(p.close)
	return p
}

func (p *pair) serve() {
	p.t.Helper()
	var err error
	if p.server, err = p.eng.Server(p.far); err != nil {
		p.t.Fatalf("Server: %v", err)
	}
}

func (p *pair) close() {
	if err := p.client.Close(); err != nil {
		p.t.Errorf("Close: %v", err)
	}
	if p.server == nil {
		p.far.Close() // the test has failed before serve
	} else if err := p.server.Close(); err != nil {
		p.t.Errorf("Close: %v", err)
	}
}

// stream opens a stream and accepts it.
func (p *pair) stream() (client, server engine.Stream) {
	p.t.Helper()
	client = p.open()
	return client, p.accept()
}

func (p *pair) open() engine.Stream {
	p.t.Helper()
	s, err := p.client.Open(context.Background())
	if err != nil {
		p.t.Fatalf("Open: %v", err)
	}
	return s
}

func (p *pair) accept() engine.Stream {
	p.t.Helper()
	s, err := p.server.Accept(context.Background())
	if err != nil {
		p.t.Fatalf("Accept: %v", err)
	}
	return s
}

func write(t *testing.T, w io.Writer, s string) {
	t.Helper()
	if n, err := io.WriteString(w, s); err != nil || n != len(s) {
		t.Fatalf("Write: %d, %v", n, err)
	}
}

func expect(t *testing.T, r io.Reader, s string) {
	t.Helper()
	buf := make([]byte, len(s))
	if _, err := io.ReadFull(r, buf); err != nil || string(buf) != s {
		t.Fatalf("read %q, %v; want %q", buf, err, s)
	}
}

func expectEOF(t *testing.T, r io.Reader) {
	t.Helper()
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d bytes, %v; want EOF", n, err)
	}
}

func expectErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v; want %v", what, err, want)
	}
}

func testEcho(t *testing.T, on setup) {
	p := newPair(t, on, ordinary, ordinary)
	c, s := p.stream()
	for i := range 10 {
		text := fmt.Sprintf("message %d", i)
		write(t, c, text)
		expect(t, s, text)
		write(t, s, text)
		expect(t, c, text)
	}
	if n, err := c.Write(nil); n != 0 || err != nil {
		t.Errorf("empty write: %d, %v", n, err)
	}
	if n, err := c.Read(nil); n != 0 || err != nil {
		t.Errorf("empty read: %d, %v", n, err)
	}
	for _, s := range []engine.Stream{c, s} {
		if s.LocalAddr() == nil || s.RemoteAddr() == nil {
			t.Error("a stream without an address")
		}
	}
}

func testServerSpeaksFirst(t *testing.T, on setup) {
	p := newPair(t, on, ordinary, ordinary)
	c, s := p.stream()
	write(t, s, "220 ready")
	expect(t, c, "220 ready")
}

// testOpenEarly: what a client opens and writes before there is a network arrives when
// there is one.
func testOpenEarly(t *testing.T, on setup) {
	p := newClient(t, on, ordinary, ordinary) // nobody answers
	if p.a != nil {
		p.a.SetDown(true)
	}
	written := make(chan error, 1)
	go func() {
		c, err := p.client.Open(context.Background())
		if err == nil {
			_, err = io.WriteString(c, "early")
		}
		written <- err
	}()
	p.pass(time.Second)
	if p.a != nil {
		p.a.SetDown(false)
	}
	p.serve()
	expect(t, p.accept(), "early")
	if err := <-written; err != nil {
		t.Error(err)
	}
}

// RunEarly tests that the first bytes of a session travel with its opening,
// which not every protocol can do.
func RunEarly(t *testing.T, eng engine.Engine) {
	Bubble(t, func(t *testing.T) {
		p := newPair(t, setup{eng: eng}, ordinary, ordinary)
		start := time.Now()
		write(t, p.open(), "first")
		expect(t, p.accept(), "first")
		if d := time.Since(start); d > ordinary.Delay {
			t.Errorf("the first bytes took %v on a path of %v", d, ordinary.Delay)
		}
		if sent := p.a.Sent(); sent.Datagrams != 1 {
			t.Errorf("the first bytes took %d datagrams", sent.Datagrams)
		}
	})
}

// testIdleWrite: what is written after a pause is on its way at once.
func testIdleWrite(t *testing.T, on setup) {
	p := newPair(t, on, ordinary, ordinary)
	c, s := p.stream()
	for range 3 {
		time.Sleep(5 * time.Second)
		start := time.Now()
		write(t, c, "again")
		expect(t, s, "again")
		if d := time.Since(start); d > ordinary.Delay {
			t.Errorf("a write after a pause took %v on a path of %v", d, ordinary.Delay)
		}
	}
}

func testIdleIsSilent(t *testing.T, on setup) {
	p := newPair(t, on, ordinary, ordinary)
	c, s := p.stream()
	write(t, c, "ping")
	expect(t, s, "ping")
	time.Sleep(time.Minute)
	before := p.a.Sent().Datagrams + p.b.Sent().Datagrams
	time.Sleep(time.Hour)
	if n := p.a.Sent().Datagrams + p.b.Sent().Datagrams - before; n > 60 {
		t.Errorf("an idle session sent %d datagrams in an hour", n)
	}
	write(t, s, "pong")
	expect(t, c, "pong")
}

func testHalfClose(t *testing.T, on setup) {
	for _, first := range []string{"client", "server"} {
		p := newPair(t, on, ordinary, ordinary)
		x, y := p.stream()
		if first == "server" {
			x, y = y, x
		}
		write(t, x, "question")
		if err := x.CloseWrite(); err != nil {
			t.Fatalf("CloseWrite: %v", err)
		}
		_, err := x.Write([]byte("more"))
		expectErr(t, "Write after CloseWrite", err, net.ErrClosed)
		expect(t, y, "question")
		expectEOF(t, y)
		expectEOF(t, y)
		p.pass(time.Minute)
		for range 100 {
			write(t, y, "answer")
			expect(t, x, "answer")
		}
		if err := y.CloseWrite(); err != nil {
			t.Fatalf("CloseWrite: %v", err)
		}
		expectEOF(t, x)
		p.close()
	}
}

func testCloseDelivers(t *testing.T, on setup) {
	const size = 300 << 10
	paths := []Path{ordinary, {Delay: 50 * time.Millisecond, Loss: 0.05}}
	if on.connect != nil {
		paths = paths[:1]
	}
	for _, path := range paths {
		p := newPair(t, on, path, path)
		c, s := p.stream()
		if _, err := c.Write(content(size)); err != nil {
			t.Fatalf("Write: %v", err)
		}
		start := time.Now()
		if err := c.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
		p.expectPassed(t, "Close", start, 0)
		p.pass(time.Minute) // even if the reader comes late
		got, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(got, content(size)) {
			t.Errorf("after Close %d bytes arrived of %d: %v", len(got), size, err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		p.close()
	}
}

// testCloseStops: a stream closed before the end of what the other side sends
// makes the other side's Write fail in the end.
func testCloseStops(t *testing.T, on setup) {
	p := newPair(t, on, ordinary, ordinary)
	c, s := p.stream()
	write(t, c, "last words")
	write(t, s, "unread")
	p.pass(time.Second)
	c.Close()
	if err := c.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	_, err := c.Read(make([]byte, 1))
	expectErr(t, "Read after Close", err, engine.ErrClosed)
	_, err = c.Write([]byte("x"))
	expectErr(t, "Write after Close", err, engine.ErrClosed)
	expectErr(t, "SetDeadline after Close", c.SetDeadline(time.Time{}), net.ErrClosed)
	expectErr(t, "CloseWrite after Close", c.CloseWrite(), net.ErrClosed)

	s.SetWriteDeadline(time.Now().Add(time.Hour))
	for {
		if _, err = s.Write(make([]byte, 1000)); err != nil {
			break
		}
		p.pass(time.Millisecond)
	}
	expectErr(t, "Write to a closed stream", err, engine.ErrReset)
	expect(t, s, "last words")
	expectEOF(t, s)
}

// testReset: a stream that is reset ends for the other side by an error, from
// either side, and not by an end of file. An end of file that was read stays one.
func testReset(t *testing.T, on setup) {
	for _, from := range []string{"client", "server"} {
		for _, ended := range []bool{false, true} {
			p := newPair(t, on, ordinary, ordinary)
			x, y := p.stream()
			if from == "server" {
				x, y = y, x
			}
			what := fmt.Sprintf("%s, after CloseWrite %t: ", from, ended)
			write(t, x, "unfinished")
			expect(t, y, "unfinished")
			write(t, y, "unread")
			want := engine.ErrReset
			if ended {
				x.CloseWrite()
				expectEOF(t, y)
				want = io.EOF
			}
			reading := make(chan error, 1)
			go func() {
				_, err := y.Read(make([]byte, 1))
				reading <- err
			}()
			start := time.Now()
			if err := x.Reset(); err != nil {
				t.Errorf("%sReset: %v", what, err)
			}
			p.expectPassed(t, "Reset", start, 0)
			expectErr(t, what+"Read that waits", <-reading, want)
			_, err := y.Read(make([]byte, 1))
			expectErr(t, what+"Read", err, want)
			y.SetWriteDeadline(time.Now().Add(time.Hour))
			for err = nil; err == nil; {
				_, err = y.Write(make([]byte, 1000))
				p.pass(time.Millisecond)
			}
			expectErr(t, what+"Write", err, engine.ErrReset)
			_, err = x.Read(make([]byte, 1))
			expectErr(t, what+"Read on its own side", err, engine.ErrClosed)
			_, err = x.Write([]byte("x"))
			expectErr(t, what+"Write on its own side", err, engine.ErrClosed)
			for range 2 {
				if err := errors.Join(x.Reset(), x.Close(), y.Reset(), y.Close()); err != nil {
					t.Errorf("%sclosing again: %v", what, err)
				}
			}
			p.close()
		}
	}
}

// testCloseEndsWrite: a Write that waits for a reader ends soon after the reader has
// gone, and so it does after a reset.
func testCloseEndsWrite(t *testing.T, on setup) {
	for _, leave := range []func(engine.Stream) error{engine.Stream.Close, engine.Stream.Reset} {
		p := newPair(t, on, ordinary, ordinary)
		c, s := p.stream()
		if _, err := p.fill(c, newSource(1)); err != nil {
			t.Fatal(err)
		}
		c.SetWriteDeadline(time.Time{})
		blocked := make(chan error, 1)
		go func() {
			for {
				if _, err := c.Write(make([]byte, 32<<10)); err != nil {
					blocked <- err
					return
				}
			}
		}()
		p.pass(time.Minute)
		start := time.Now()
		leave(s)
		expectErr(t, "Write whose reader has gone", <-blocked, engine.ErrReset)
		if d := time.Since(start); on.connect == nil && d > 2*time.Second {
			t.Errorf("a Write returned %v after its reader had gone", d)
		}
		p.close()
	}
}

// testBackpressure: a writer stops when nobody reads, and goes on when
// somebody does.
func testBackpressure(t *testing.T, on setup) {
	p := newPair(t, on, ordinary, ordinary)
	c, s := p.stream()
	source := newSource(1)
	written, err := p.fill(c, source)
	if err != nil {
		t.Fatal(err)
	}
	c.SetWriteDeadline(time.Time{})

	done := make(chan error, 1)
	go func() { done <- receive(s, 1, written+1<<20) }()
	for rest := 1 << 20; rest > 0; {
		n, err := c.Write(source.peek(min(rest, 32<<10)))
		if err != nil {
			t.Fatalf("Write: %v", err)
		}
		source.skip(n)
		rest -= n
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// fill writes what comes from a source until a Write has waited for long, and
// returns how much that was. Its error says that the writer did not stop.
func (p *pair) fill(s engine.Stream, from *source) (written int, err error) {
	const enough = 64 << 20 // bytes that no stream may hold
	for written < enough {
		s.SetWriteDeadline(time.Now().Add(60 * p.second()))
		n, err := s.Write(from.peek(32 << 10))
		from.skip(n)
		written += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return written, nil
		}
		if err != nil {
			return written, fmt.Errorf("Write without a reader: %w", err)
		}
	}
	return written, fmt.Errorf("%d bytes were written and nobody read", written)
}

func testDeadlines(t *testing.T, on setup) {
	p := newPair(t, on, ordinary, ordinary)
	c, s := p.stream()

	start := time.Now()
	c.SetReadDeadline(start.Add(3 * p.second()))
	_, err := c.Read(make([]byte, 1))
	expectErr(t, "Read", err, os.ErrDeadlineExceeded)
	p.expectPassed(t, "Read", start, 3*p.second())
	_, err = c.Read(make([]byte, 1))
	expectErr(t, "Read again", err, os.ErrDeadlineExceeded)

	// A deadline set during Read counts, and so does its removal.
	c.SetReadDeadline(time.Time{})
	result := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		result <- err
	}()
	p.pass(time.Second) // Read is waiting
	c.SetReadDeadline(time.Now().Add(p.second()))
	expectErr(t, "Read", <-result, os.ErrDeadlineExceeded)
	c.SetDeadline(time.Now().Add(-time.Second))
	_, err = c.Read(make([]byte, 1))
	expectErr(t, "Read after the deadline", err, os.ErrDeadlineExceeded)
	_, err = c.Write([]byte("late"))
	expectErr(t, "Write after the deadline", err, os.ErrDeadlineExceeded)

	c.SetDeadline(time.Time{})
	write(t, c, "in time")
	expect(t, s, "in time")
	write(t, s, "as well")
	expect(t, c, "as well")
}

// testWriteTimeout: after a Write that timed out, exactly the bytes that it
// counted have been written.
func testWriteTimeout(t *testing.T, on setup) {
	p := newPair(t, on, ordinary, ordinary)
	c, s := p.stream()
	source := newSource(1)
	written := 0
	for range 5 {
		c.SetWriteDeadline(time.Now().Add(p.second()))
		block := bytes.Clone(source.peek(40 << 20)) // more than any engine holds
		n, err := c.Write(block)
		clear(block) // a Write that has returned must not keep its argument
		source.skip(n)
		written += n
		expectErr(t, "Write without a reader", err, os.ErrDeadlineExceeded)
	}
	c.CloseWrite()
	if err := receive(s, 1, written); err != nil {
		t.Error(err)
	}
	expectEOF(t, s)
}

func testCloseUnblocks(t *testing.T, on setup) {
	for _, what := range []string{"stream", "session"} {
		p := newPair(t, on, ordinary, ordinary)
		c, s := p.stream()
		var group sync.WaitGroup
		blocked := func(name string, call func() error) {
			group.Go(func() { expectErr(t, what+" closed during "+name, call(), net.ErrClosed) })
		}
		blocked("Read", func() error {
			_, err := c.Read(make([]byte, 1))
			return err
		})
		blocked("Write", func() error {
			for {
				if _, err := c.Write(make([]byte, 100<<10)); err != nil {
					return err
				}
			}
		})
		if what == "session" && on.eng.Multiplexes() {
			group.Go(func() {
				if _, err := p.server.Accept(context.Background()); err == nil {
					t.Error("Accept returned a stream that nobody opened")
				}
			})
		}
		p.pass(time.Minute)
		start := time.Now()
		if what == "stream" {
			c.Close()
			group.Wait()
		} else {
			p.client.Close()
			group.Go(func() { p.server.Close() })
			group.Wait()
			<-p.client.Done()
			<-p.server.Done()
			_, err := p.client.Open(context.Background())
			expectErr(t, "Open on a closed session", err, net.ErrClosed)
		}
		if d := time.Since(start); on.connect == nil && d > time.Second {
			t.Errorf("closing the %s took %v", what, d)
		}
		s.Close()
		p.close()
	}
}

// testCloseBlockedCarrier: a carrier that takes nothing does not keep Close.
func testCloseBlockedCarrier(t *testing.T, on setup) {
	p := newPair(t, on, Path{Delay: time.Hour, Queue: 16 << 10}, ordinary)
	c := p.open()
	c.SetWriteDeadline(time.Now().Add(time.Minute))
	var err error
	for err == nil {
		_, err = c.Write(make([]byte, 10<<10))
	}
	expectErr(t, "Write to a blocked carrier", err, os.ErrDeadlineExceeded)
	start := time.Now()
	c.Close()
	p.client.Close()
	if d := time.Since(start); d > time.Second {
		t.Errorf("Close took %v", d)
	}
	<-p.client.Done()
}

func testSessionCloseIsSeen(t *testing.T, on setup) {
	p := newPair(t, on, ordinary, ordinary)
	c, s := p.stream()
	write(t, c, "hello")
	expect(t, s, "hello")
	p.client.Close()
	<-p.server.Done()
	_, err := s.Read(make([]byte, 1))
	expectErr(t, "Read after the session's end", err, engine.ErrReset)
	_, err = s.Write([]byte("x"))
	expectErr(t, "Write after the session's end", err, engine.ErrReset)
	if err := p.server.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func testCarrierFails(t *testing.T, on setup) {
	p := newPair(t, on, ordinary, ordinary)
	c, s := p.stream()
	write(t, s, "all of it")
	s.CloseWrite()
	time.Sleep(time.Second)
	cause := errors.New("the carrier is lost")
	p.a.Break(cause)
	<-p.client.Done()
	expect(t, c, "all of it") // had arrived with its end
	expectEOF(t, c)
	_, err := c.Write([]byte("x"))
	expectErr(t, "Write", err, engine.ErrReset)
	expectErr(t, "Write", err, cause)
	_, err = p.client.Open(context.Background())
	if err == nil {
		t.Error("Open on a session that has ended")
	}
	if on.eng.Multiplexes() {
		expectErr(t, "Open", err, cause)
	}
	if err := p.client.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func testContexts(t *testing.T, on setup) {
	p := newPair(t, on, ordinary, ordinary)
	ctx, cancel := context.WithTimeout(context.Background(), 3*p.second())
	defer cancel()
	start := time.Now()
	_, err := p.server.Accept(ctx)
	expectErr(t, "Accept", err, context.DeadlineExceeded)
	p.expectPassed(t, "Accept", start, 3*p.second())
	_, err = p.client.Open(ctx)
	expectErr(t, "Open", err, context.DeadlineExceeded)
	c, s := p.stream()
	write(t, c, "still well")
	expect(t, s, "still well")
}

// testGarbage: datagrams that are not the engine's may end the session, but
// nothing worse.
func testGarbage(t *testing.T, on setup) {
	p := newPair(t, on, ordinary, ordinary)
	r := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		garbage := make([]byte, 2+r.IntN(engine.MaxDatagram-2))
		for i := range garbage {
			garbage[i] = byte(r.Uint32())
		}
		if _, err := p.a.WriteTo(garbage, p.a.RemoteAddr()); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Second)
	select {
	case <-p.server.Done():
	default:
		c, s := p.stream()
		write(t, c, "still well")
		expect(t, s, "still well")
	}
}

// testSmallQueue: a carrier whose queue holds 64 KB, in order, with WriteTo
// blocking most of the time.
func testSmallQueue(t *testing.T, on setup) {
	path := Path{Delay: 10 * time.Millisecond, Queue: 64 << 10}
	p := newPair(t, on, path, path)
	c, s := p.stream()
	exchange(t, c, s, 4<<20)
	p.expectLittleOverhead(4 << 20)
}

func testBulk(t *testing.T, on setup) {
	if on.connect != nil {
		p := newPair(t, on, Path{}, Path{})
		c, s := p.stream()
		exchange(t, c, s, on.size)
		return
	}
	size := 100 << 20
	if testing.Short() {
		size = 16 << 20
	}
	const delay = 50 * time.Millisecond
	tests := []struct {
		name   string
		path   Path
		size   int
		outage time.Duration
		clean  bool
	}{
		{name: "AtOnce", size: 16 << 20, clean: true},
		{name: "Delay", path: Path{Delay: delay}, size: size, clean: true}, // numbers of 16 bits would not do
		{name: "Slow", path: Path{Delay: delay, Rate: 1 << 20, Queue: 128 << 10}, size: 8 << 20, clean: true},
		{name: "Repaired", path: Path{Delay: delay, Loss: 0.01, Repair: 150 * time.Millisecond}, size: 16 << 20, clean: true},
		{name: "Loss", path: Path{Delay: delay, Loss: 0.05}, size: 16 << 20},
		{name: "Reordering", path: Path{Delay: delay, Jitter: 20 * time.Millisecond}, size: 16 << 20},
		{name: "Duplication", path: Path{Delay: delay, Duplicate: 0.2}, size: 16 << 20},
		{name: "Outage", path: Path{Delay: delay, Rate: 8 << 20, Queue: 1 << 20}, size: 16 << 20, outage: 3 * time.Second},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			Bubble(t, func(t *testing.T) {
				p := newPair(t, on, test.path, test.path)
				c, s := p.stream()
				if test.outage > 0 {
					cut := time.AfterFunc(time.Second, func() {
						p.a.SetDown(true)
						time.Sleep(test.outage)
						p.a.SetDown(false)
					})
					defer cut.Stop()
				}
				start := time.Now()
				exchange(t, c, s, test.size)
				t.Logf("%d MB each way in %v; sent %+v, %+v",
					test.size>>20, time.Since(start).Round(time.Millisecond), p.a.Sent(), p.b.Sent())
				if test.clean {
					p.expectLittleOverhead(test.size)
				}
			})
		})
	}
}

// expectLittleOverhead fails if more was sent than size bytes of content each
// way need: nothing twice.
func (p *pair) expectLittleOverhead(size int) {
	p.t.Helper()
	for _, c := range []*Conn{p.a, p.b} {
		if sent := c.Sent().Bytes; sent > size+size/20 {
			p.t.Errorf("%d bytes were sent for %d of content", sent, size)
		}
	}
}

func testThousandStreams(t *testing.T, on setup) {
	p := newPair(t, on, ordinary, ordinary)
	done := serveEcho(p)
	const width = 50
	for i := range 1000 / width {
		var group sync.WaitGroup
		for j := range width {
			group.Go(func() { echo(t, p.client, fmt.Sprintf("stream %d of round %d", j, i)) })
		}
		group.Wait()
	}
	p.close()
	<-done
}

func testManyAtOnce(t *testing.T, on setup) {
	p := newPair(t, on, ordinary, ordinary)
	done := serveEcho(p)
	var group sync.WaitGroup
	for i := range 250 { // what every engine has room for
		group.Go(func() { echo(t, p.client, fmt.Sprintf("stream %d%s", i, content(5000))) })
	}
	group.Wait()
	p.close()
	<-done
}

// serveEcho sends back what comes on each stream until the session ends.
func serveEcho(p *pair) (done chan struct{}) {
	done = make(chan struct{})
	var group sync.WaitGroup
	go func() {
		defer close(done)
		for {
			s, err := p.server.Accept(context.Background())
			if err != nil {
				break
			}
			group.Go(func() {
				defer s.Close()
				if _, err := io.Copy(s, s); err != nil {
					p.t.Errorf("echo: %v", err)
				}
			})
		}
		group.Wait()
	}()
	return done
}

func echo(t *testing.T, session engine.Session, text string) {
	c, err := session.Open(context.Background())
	if err != nil {
		t.Errorf("Open: %v", err)
		return
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		t.Errorf("Write: %v", err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Errorf("CloseWrite: %v", err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != text {
		t.Errorf("%d bytes came back of %d: %v", len(got), len(text), err)
	}
}

// testStalledStream: streams that nobody reads do not hinder another one.
func testStalledStream(t *testing.T, on setup) {
	p := newPair(t, on, ordinary, ordinary)
	var filling, blocked sync.WaitGroup
	var stalled []engine.Stream
	for range 8 {
		c, s := p.stream()
		stalled = append(stalled, c, s)
		filling.Go(func() {
			if _, err := p.fill(c, newSource(1)); err != nil {
				t.Error(err)
			}
			c.SetWriteDeadline(time.Time{})
			blocked.Go(func() {
				for {
					if _, err := c.Write(make([]byte, 100<<10)); err != nil {
						return
					}
				}
			})
		})
	}
	filling.Wait()
	c, s := p.stream()
	exchange(t, c, s, 4<<20)
	for _, s := range stalled {
		s.Close()
	}
	blocked.Wait()
}

// testLittleMemory: where there is room for little, streams that nobody reads take
// no more than that, however many they are, and hinder no other. What is read makes
// room again.
func testLittleMemory(t *testing.T, on setup) {
	const room = 4 << 20
	const least = 32 << 10 // that a stream may have in any case
	on.room = room
	p := newPair(t, on, ordinary, ordinary)
	streams := 50
	if !on.eng.Multiplexes() {
		streams = 1
	}
	var group sync.WaitGroup
	var all []engine.Stream
	var written atomic.Int64
	for range streams {
		c, s := p.stream()
		all = append(all, c)
		group.Go(func() {
			n, err := p.fill(s, newSource(1))
			if err != nil {
				t.Error(err)
			}
			written.Add(int64(n))
			s.SetWriteDeadline(time.Time{})
			s.CloseWrite()
		})
	}
	group.Wait()
	const own = 2 << 20 // that the server's side has taken and not sent
	if n, most := int(written.Load()), room+streams*least; n > most+own || p.a.Promised() > most {
		t.Errorf("%d bytes were written that nobody reads, and %d are promised; want %d at most", n, p.a.Promised(), most)
	}
	if on.eng.Multiplexes() {
		c, s := p.stream()
		exchange(t, c, s, 4<<20)
		c.Close()
		s.Close()
	}
	for _, c := range all {
		n, err := io.Copy(io.Discard, c)
		if err != nil {
			t.Error(err)
		}
		written.Add(-n)
	}
	if n := written.Load(); n != 0 {
		t.Errorf("%d bytes have not come", n)
	}
}

// testResetLeavesOthers: streams that end in every way, in the middle of a
// transfer on another.
func testResetLeavesOthers(t *testing.T, on setup) {
	p := newPair(t, on, ordinary, ordinary)
	c, s := p.stream()
	size := 16 << 20
	if on.connect != nil {
		size = 4 << 20
	}
	var group sync.WaitGroup
	group.Go(func() { exchange(t, c, s, size) })
	for range 20 {
		x, y := p.stream()
		group.Go(func() {
			for {
				if _, err := x.Write(make([]byte, 10<<10)); err != nil {
					expectErr(t, "Write to a stream closed unread", err, engine.ErrReset)
					x.Close()
					return
				}
			}
		})
		p.pass(10 * time.Millisecond)
		y.Close()
	}
	group.Wait()
}

func testSingleStream(t *testing.T, on setup) {
	p := newPair(t, on, ordinary, ordinary)
	c, s := p.stream()
	_, err := p.client.Open(context.Background())
	expectErr(t, "second Open", err, engine.ErrSingleStream)
	_, err = p.server.Accept(context.Background())
	expectErr(t, "second Accept", err, engine.ErrSingleStream)

	// When the stream has ended in both directions, and all was read, the session has
	// ended, too.
	write(t, c, "question")
	c.CloseWrite()
	expect(t, s, "question")
	expectEOF(t, s)
	write(t, s, "answer")
	s.Close()
	p.pass(time.Minute)
	expect(t, c, "answer")
	expectEOF(t, c)
	<-p.client.Done()
	<-p.server.Done()
}

// exchange sends size bytes each way at once and checks them.
func exchange(t *testing.T, a, b engine.Stream, size int) {
	t.Helper()
	var group sync.WaitGroup
	for i, s := range []engine.Stream{a, b} {
		group.Go(func() {
			if err := send(s, uint64(1+i), size); err != nil {
				t.Error(err)
			}
		})
		group.Go(func() {
			if err := receive(s, uint64(2-i), size); err != nil {
				t.Error(err)
			}
			if n, err := s.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("after the last byte: %d, %v; want EOF", n, err)
			}
		})
	}
	group.Wait()
}

// send writes size bytes of source seed and ends the direction.
func send(s engine.Stream, seed uint64, size int) error {
	source := newSource(seed)
	for size > 0 {
		n, err := s.Write(source.peek(min(size, 32<<10)))
		if err != nil {
			return fmt.Errorf("with %d bytes to send: %w", size, err)
		}
		source.skip(n)
		size -= n
	}
	return s.CloseWrite()
}

// receive reads size bytes and compares them with source seed.
func receive(s engine.Stream, seed uint64, size int) error {
	source := newSource(seed)
	buf := make([]byte, 32<<10)
	for size > 0 {
		n, err := s.Read(buf[:min(size, len(buf))])
		if !bytes.Equal(buf[:n], source.peek(n)) {
			return fmt.Errorf("with %d bytes to come: wrong bytes", size)
		}
		source.skip(n)
		size -= n
		if err != nil && size > 0 {
			return fmt.Errorf("with %d bytes to come: %w", size, err)
		}
	}
	return nil
}

// source is an endless sequence of bytes without a short period.
type source struct {
	rand *rand.ChaCha8
	buf  []byte
}

func newSource(seed uint64) *source {
	return &source{rand: rand.NewChaCha8([32]byte{byte(seed)})}
}

// peek returns the next n bytes.
func (s *source) peek(n int) []byte {
	if missing := n - len(s.buf); missing > 0 {
		more := make([]byte, len(s.buf)+max(missing, 256<<10))
		s.rand.Read(more[copy(more, s.buf):])
		s.buf = more
	}
	return s.buf[:n]
}

func (s *source) skip(n int) { s.buf = s.buf[n:] }

func content(n int) []byte { return bytes.Clone(newSource(9).peek(n)) }

// RunAccount tests that an engine tells its Carrier what it holds: on the side
// that does not read, all that has come; and in the end, when everything was read
// and the streams are closed, no more than at the beginning.
func RunAccount(t *testing.T, eng engine.Engine) {
	Bubble(t, func(t *testing.T) {
		const slack = 16 << 10 // what a buffer that has begun may take
		p := newPair(t, setup{eng: eng}, ordinary, ordinary)
		keep, _ := p.stream() // a session of one stream would end with it
		write(t, keep, "x")
		time.Sleep(time.Minute)
		near, far := p.a.Held(), p.b.Held()
		for range 3 {
			c, s := p.stream()
			written, err := p.fill(c, newSource(1))
			if err != nil {
				t.Fatal(err)
			}
			if n := p.a.Held() + p.b.Held() - near - far; n < written || n > written+written/4 {
				t.Errorf("%d bytes are held of %d that nobody has read", n, written)
			}
			go c.Close()
			if err := receive(s, 1, written); err != nil {
				t.Fatal(err)
			}
			s.Close()
			time.Sleep(time.Minute)
			if x, y := p.a.Held()-near, p.b.Held()-far; x < 0 || y < 0 || x > slack || y > slack {
				t.Errorf("%d and %d bytes are held when nothing is", x, y)
			}
		}
	})
}
