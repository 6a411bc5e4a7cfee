package quic

import (
	"context"
	"runtime"
	"sync"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/qlog"
	"github.com/quic-go/quic-go/qlogwriter"

	"turbotunnel/common/engine"
)

// What things take in memory, in bytes, as TestHeld measures it with v0.65.0.
const (
	sessionCost = 48 << 10 // a session at rest
	streamCost  = 2600     // an open stream

	// A STREAM or CRYPTO frame that is not read is in a buffer of a whole packet, or
	// copied if it has fewer than smallFrame bytes (MinStreamFrameBufferSize in the
	// library's internal/protocol). Frames are not joined.
	frameCost      = 1700
	smallFrameCost = 150 // and its bytes
	smallFrame     = 128

	// sentCost is for a packet that is not acknowledged, or lost and not sent again.
	sentCost = 1850
)

// region is the size in bytes of the pieces of a stream by which an account knows
// what is not read.
const region = 16 << 10

// account tells the carrier what the library holds for the other side. A server
// learns that from the library's log of events (qlog), the only place where it says
// what packets contain: 1 MB of packets with 200 frames of a byte each takes 25 MB
// here. That costs a tenth of the library's time, and a client, whose server is its
// operator's choice, counts sessions and streams only.
type account struct {
	carrier engine.Carrier

	mu      sync.Mutex // guards what follows
	inboxes map[quic.StreamID]*inbox
	next    quic.StreamID // the first that no frame was of
	flight  int           // packets not acknowledged
	lost    int           // packets to be sent again
}

// inbox is what is not read of a stream that this side has not closed.
type inbox struct {
	read, end int64 // bytes read; the end of the last frame
	regions   map[int64]int
	held      int // the sum of regions
}

func newAccount(carrier engine.Carrier) *account {
	carrier.Hold(sessionCost)
	return &account{carrier: carrier, inboxes: make(map[quic.StreamID]*inbox)}
}

// What follows has a server's connection tell a its events: tracer is for quic.Config.

func (a *account) tracer(context.Context, bool, quic.ConnectionID) qlogwriter.Trace { return a }
func (a *account) AddProducer() qlogwriter.Recorder                                 { return a }
func (a *account) SupportsSchemas(string) bool                                      { return false }
func (a *account) Close() error                                                     { return nil }

func (a *account) RecordEvent(e qlogwriter.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch e := e.(type) {
	case qlog.PacketReceived:
		for _, frame := range e.Frames {
			switch f := frame.Frame.(type) {
			case *qlog.StreamFrame:
				a.received(f)
			case *qlog.CryptoFrame: // an honest handshake has a few: they are not given back
				a.carrier.Hold(costOf(f.Length))
			}
		}
	case qlog.PacketSent:
		for _, frame := range e.Frames {
			if _, ok := frame.Frame.(*qlog.StreamFrame); ok && a.lost > 0 {
				a.sent(a.flight, a.lost-1) // what is lost goes before what is new
			}
		}
	case qlog.PacketLost:
		a.sent(a.flight, a.lost+1)
	case qlog.MetricsUpdated:
		a.sent(e.PacketsInFlight, a.lost)
	}
}

func costOf(frame int64) int {
	if frame < smallFrame {
		return smallFrameCost + int(frame)
	}
	return frameCost
}

// sent says how many packets are in flight and lost. mu is held.
func (a *account) sent(flight, lost int) {
	if len(a.inboxes) == 0 {
		lost = 0 // those of a stream that was reset are not sent again
	}
	a.carrier.Hold((flight + lost - a.flight - a.lost) * sentCost)
	a.flight, a.lost = flight, lost
}

// inbox returns that of a stream, or nil if it was closed. A stream that is opened
// opens those before it. mu is held.
func (a *account) inbox(id quic.StreamID) *inbox {
	for ; a.next <= id && id-a.next < 4*engine.MaxStreams; a.next += 4 { // else the library ends the session
		a.inboxes[a.next] = &inbox{regions: make(map[int64]int)}
		a.carrier.Hold(streamCost)
	}
	return a.inboxes[id]
}

// opened counts a stream of which nothing may have come.
func (a *account) opened(id quic.StreamID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inbox(id)
}

// received counts a frame, which the library has taken. One that has come before is
// counted again until it is read. mu is held.
func (a *account) received(f *qlog.StreamFrame) {
	in, end := a.inbox(f.StreamID), f.Offset+f.Length
	if in == nil || end <= in.read || f.Length == 0 {
		return
	}
	cost := costOf(f.Length)
	in.regions[f.Offset/region] += cost
	in.held += cost
	in.end = max(in.end, end)
	a.carrier.Hold(cost)
}

// read says that n bytes of a stream were read. It may come before received.
func (a *account) read(id quic.StreamID, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	in := a.inbox(id)
	if in == nil {
		return
	}
	before := in.read / region
	in.read += int64(n)
	given := 0
	for r := before; r < in.read/region; r++ {
		given += in.regions[r]
		delete(in.regions, r)
	}
	if in.read >= in.end {
		given = in.held
		clear(in.regions)
	}
	in.held -= given
	a.carrier.Hold(-given)
}

// closed says that this side has closed a stream. What the library has of it and was
// not read stays until the library forgets the stream, which depends on the client.
func (a *account) closed(str *quic.Stream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	in := a.inbox(str.StreamID())
	if in == nil {
		return
	}
	delete(a.inboxes, str.StreamID())
	a.carrier.Hold(-streamCost)
	if in.held > 0 {
		runtime.AddCleanup(str, a.carrier.Hold, -in.held)
	}
}
