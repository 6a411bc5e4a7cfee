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

// What things take in memory, in bytes, as TestHeld and TestHeldAtRest measure it
// with v0.65.0.
const (
	sessionCost = 48 << 10 // a session at rest
	streamCost  = 2600     // an open stream
	sentCost    = 1850     // a packet that is not acknowledged, or lost and not sent again

	// A frame that is not read is in a buffer of a whole packet, or copied if it has
	// fewer than smallFrame bytes (MinStreamFrameBufferSize in the library's
	// internal/protocol). Frames are not joined.
	frameCost      = 1700
	smallFrameCost = 150 // and its bytes
	smallFrame     = 128

	// region is the size of the pieces of a stream by which it is known what is not read.
	region = 16 << 10
)

// account tells the carrier what the library holds for the other side. A server
// learns that from the library's log of events (qlog), the only place where it says
// what packets contain. That costs time (doc/engines.md, quic-go), so a client, whose
// server is its operator's choice, counts sessions and streams only.
type account struct {
	carrier engine.Carrier

	mu      sync.Mutex // guards what follows
	inboxes map[quic.StreamID]*inbox
	streams int           // that the library has not forgotten
	next    quic.StreamID // the first that was not heard of
	flight  int           // packets not acknowledged
	lost    int           // packets to be sent again
}

// inbox is what is not read of a stream that this side has not closed.
type inbox struct {
	read, end int64         // bytes read; the end of the last frame
	regions   map[int64]int // what the frames take that end in each
}

func newAccount(carrier engine.Carrier) *account {
	carrier.Hold(sessionCost)
	return &account{carrier: carrier, inboxes: make(map[quic.StreamID]*inbox)}
}

// tracer is for the quic.Config of a server, whose connection tells a its events then.
func (a *account) tracer(context.Context, bool, quic.ConnectionID) qlogwriter.Trace { return a }

func (a *account) AddProducer() qlogwriter.Recorder { return a }
func (a *account) SupportsSchemas(string) bool      { return false }
func (a *account) Close() error                     { return nil }

func (a *account) RecordEvent(e qlogwriter.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	unacknowledged := a.flight + a.lost
	switch e := e.(type) {
	case qlog.PacketReceived:
		for _, frame := range e.Frames {
			switch f := frame.Frame.(type) {
			case *qlog.StreamFrame:
				a.received(f)
			case *qlog.CryptoFrame: // an honest handshake has a few: they are not given back
				a.carrier.Hold(costOf(f.Length))
			// The others that open a stream, which may wait long to be accepted.
			case *qlog.ResetStreamFrame:
				a.inbox(f.StreamID)
			case *qlog.StopSendingFrame:
				a.inbox(f.StreamID)
			case *qlog.StreamDataBlockedFrame:
				a.inbox(f.StreamID)
			case *qlog.MaxStreamDataFrame:
				a.inbox(f.StreamID)
			}
		}
	case qlog.PacketSent:
		for _, frame := range e.Frames {
			if _, ok := frame.Frame.(*qlog.StreamFrame); ok {
				a.lost = max(a.lost-1, 0) // what is lost goes before what is new
			}
		}
	case qlog.PacketLost:
		a.lost++
	case qlog.MetricsUpdated:
		a.flight = e.PacketsInFlight
	}
	if a.streams == 0 {
		a.lost = 0 // those of a stream that was reset are not sent again
	}
	a.carrier.Hold((a.flight + a.lost - unacknowledged) * sentCost)
}

func costOf(frame int64) int {
	if frame < smallFrame {
		return smallFrameCost + int(frame)
	}
	return frameCost
}

// inbox returns that of a stream, or nil if it was closed. A stream that is opened
// opens those before it. mu is held.
func (a *account) inbox(id quic.StreamID) *inbox {
	for ; a.next <= id && id-a.next < 4*engine.MaxStreams; a.next += 4 { // else the library ends the session
		a.inboxes[a.next] = &inbox{regions: make(map[int64]int)}
		a.streams++
		a.carrier.Hold(streamCost)
	}
	return a.inboxes[id]
}

// opened counts a stream of which nothing may have come.
func (a *account) opened(id quic.StreamID) *inbox {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.inbox(id)
}

// received counts a frame, which the library has taken. One that has come before is
// counted again until it is read. mu is held.
func (a *account) received(f *qlog.StreamFrame) {
	in, end := a.inbox(f.StreamID), f.Offset+f.Length
	if in == nil || end <= in.read {
		return
	}
	in.regions[end/region] += costOf(f.Length)
	in.end = max(in.end, end)
	a.carrier.Hold(costOf(f.Length))
}

// read says that n bytes of a stream were read. It may come before received.
func (a *account) read(in *inbox, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := in.read / region
	in.read += int64(n)
	for ; r < in.read/region || r == in.read/region && in.read >= in.end; r++ {
		a.carrier.Hold(-in.regions[r])
		delete(in.regions, r)
	}
}

// closed says that this side has closed a stream. The library keeps it, what it has of
// it that was not read, and what is to be sent again, until the other side has it all
// and has ended it too.
func (a *account) closed(in *inbox, str *quic.Stream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.inboxes, str.StreamID())
	cost := streamCost
	for _, unread := range in.regions {
		cost += unread
	}
	in.regions = nil
	runtime.AddCleanup(str, a.forgotten, cost)
}

// forgotten says that the library has forgotten a stream, which took cost.
func (a *account) forgotten(cost int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.streams--
	a.carrier.Hold(-cost)
}
