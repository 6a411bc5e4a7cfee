package main

//lint:file-ignore SA1019 see http2.go

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// A testFrame is a frame of which is counted how often it is looked at.
type testFrame struct {
	stream  uint32
	name    string
	data    int
	room    *int // bytes that its stream may send
	control bool
	asked   *int // how often one was asked what may be written
}

func (f testFrame) StreamID() uint32 { return f.stream }
func (f testFrame) DataSize() int    { return f.data }
func (f testFrame) Consume(int32) (now, rest testFrame, pieces int) {
	*f.asked++
	if f.data == 0 || *f.room >= f.data {
		if f.data > 0 {
			*f.room -= f.data
		}
		return f, rest, 1
	}
	if *f.room == 0 {
		return now, rest, 0
	}
	now, rest = f, f
	now.data, rest.data = *f.room, f.data-*f.room
	*f.room = 0
	return now, rest, 2
}

// An orderTest is an order, and what its streams may send.
type orderTest struct {
	t *testing.T
	*frameOrder[testFrame]
	rooms map[uint32]*int
	asked int
}

func newOrderTest(t *testing.T, streams uint32, room int) *orderTest {
	o := &orderTest{
		t:          t,
		frameOrder: makeFrameOrder(func(f testFrame) bool { return f.control }, func(int64) {}),
		rooms:      make(map[uint32]*int),
	}
	for s := uint32(1); s <= streams; s++ {
		o.OpenStream(s, http2.OpenStreamOptions{})
		o.rooms[s] = new(room)
	}
	return o
}

func (o *orderTest) push(stream uint32, name string, data int, control bool) {
	room := o.rooms[stream]
	if room == nil {
		room = new(0)
	}
	o.Push(testFrame{stream, name, data, room, control, &o.asked})
}

// popped checks what comes next, up to what cannot be written.
func (o *orderTest) popped(want ...string) {
	o.t.Helper()
	var got []string
	for f, ok := o.Pop(); ok; f, ok = o.Pop() {
		if f.data > 0 {
			f.name += fmt.Sprint(" ", f.data)
		}
		got = append(got, f.name)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		o.t.Errorf("%q, want %q", got, want)
	}
}

// Streams have their turns, each keeps its order, and what is no stream's comes first.
func TestFrameOrder(t *testing.T) {
	o := newOrderTest(t, 3, 1000)
	o.push(1, "head 1", 0, false)
	o.push(1, "data 1", 10, false)
	o.push(2, "data 2", 20, false)
	o.push(2, "more 2", 21, false)
	o.push(3, "data 3", 30, false)
	o.push(0, "settings", 0, true)
	o.push(3, "reset 3", 0, true)
	o.push(9, "about one that is closed", 0, false)
	o.popped("settings", "reset 3", "about one that is closed", "head 1", "data 2 20", "data 3 30", "data 1 10", "more 2 21")
	o.popped()
}

// What has no room keeps nobody else waiting, and goes on where it was.
func TestFrameOrderWithoutRoom(t *testing.T) {
	o := newOrderTest(t, 3, 8)
	for s := range uint32(3) {
		o.push(s+1, fmt.Sprint("data ", s+1), 12, false)
		o.push(s+1, fmt.Sprint("end ", s+1), 0, false)
	}
	o.popped("data 1 8", "data 2 8", "data 3 8")
	o.push(2, "reset 2", 0, true)
	o.popped("reset 2")
	o.CloseStream(2)
	*o.rooms[3] = 100
	o.popped("data 3 4", "end 3")
	*o.rooms[1], *o.rooms[2] = 100, 100
	o.popped("data 1 4", "end 1")
	if o.turns.Len() > 0 || len(o.streams) != 2 {
		t.Errorf("%d streams have turns and %d are open", o.turns.Len(), len(o.streams))
	}
}

// Streams that have nothing to say cost those nothing that have.
func TestFrameOrderOfMany(t *testing.T) {
	o := newOrderTest(t, 250, 1000)
	o.push(7, "data", 10, false)
	o.popped("data 10")
	o.popped()
	if o.asked != 1 {
		t.Errorf("%d frames were looked at to write one", o.asked)
	}
}

// A queue that is never empty does not grow.
func TestFramesAreFew(t *testing.T) {
	var q frames[int]
	q.push(0)
	for i := range 1000 {
		q.push(i + 1)
		if n := *q.next(); n != i {
			t.Fatalf("%d, want %d", n, i)
		}
		q.drop()
	}
	if cap(q.all) > 8 {
		t.Errorf("it has %d places for one", cap(q.all))
	}
}

// Who takes nothing of an answer is told when its time is over, though its data wait:
// package http2's own frames are told apart.
func TestResetOvertakesData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, dial, stop := startH2(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Second)) //nolint:errcheck // then it is never over
			w.Write(make([]byte, 1<<20))                                                //nolint:errcheck // that is the point
		}))
		defer stop()
		s := dial()
		s.post(1, "/")
		before := s.said()
		time.Sleep(2 * time.Second)
		if said := s.said(); !strings.HasSuffix(before, "DATA") || said != "RST_STREAM(1,INTERNAL_ERROR)" {
			t.Errorf("%q, and in the end %q", before, said)
		}
	})
}

// Answers to PING that nobody takes count for the connection, until they have gone:
// then nothing is left of them.
func TestControlFramesCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, stop := startH2(t, http.NotFoundHandler())
		defer stop()
		near, far := net.Pipe()
		defer near.Close()
		c.ln.conns <- far
		io.WriteString(near, http2.ClientPreface)
		framer := http2.NewFramer(near, near)
		framer.WriteSettings()
		const pings = 9000 // package http2 allows 10 000
		for range pings {
			framer.WritePing(false, [8]byte{})
		}
		synctest.Wait()
		if held := c.d.held.Load(); held < pings*controlCost || held > 2*pings*controlCost {
			t.Errorf("%d bytes are held for %d frames", held, pings)
		}
		for answers := 0; answers < pings; {
			f, err := framer.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if f.Header().Type == http2.FramePing {
				answers++
			}
		}
		synctest.Wait()
		if held := c.d.held.Load(); held != 0 {
			t.Errorf("%d bytes are held when all are answered", held)
		}
	})
}

// A queue that was long keeps no room for that when it is empty.
func TestFramesGo(t *testing.T) {
	var q frames[int]
	for range 1000 {
		q.push(0)
	}
	for !q.isEmpty() {
		q.drop()
	}
	if cap(q.all) > fewFrames {
		t.Errorf("it has %d places for none", cap(q.all))
	}
}
