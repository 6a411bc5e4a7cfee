// Package mux makes many streams of one: the library smux
// (github.com/xtaci/smux, version 2, without keepalive) over an engine's one
// reliable stream. What stands on the wire is smux's own, and notices that any other
// smux ignores: doc/protocol.md, section 6.
//
// smux waits where this package must not (doc/engines.md), so it is given nothing
// before that can go. A tap between smux and the Channel sees every frame of both
// directions. From what it sees a Stream knows how many bytes wait to be read, what the
// other side's window has left, and whether the stream has ended; on that it waits, with
// deadlines, and calls smux when the call does not block. SYN, FIN and UPD never wait
// for room.
//
// The windows of streams and what is unread are bounded together, as memory, see
// credit.go, and the carrier is told of all of it. A session that holds maxHeld all the
// same, because many streams have the least window, reads no more until they are read.
package mux

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xtaci/smux"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
)

const (
	frameSize  = 32 << 10              // the largest body of a frame in bytes: smux takes memory in powers of two
	maxStreams = 2 * engine.MaxStreams // that a server has room for: twice as many as a client may have open

	// frameCost is what an unread frame takes besides its body, in bytes: the
	// slice that is its buffer's head, a place of 32 in the ring of its stream and
	// one of 2 in ours, which are full to between a half and all.
	frameCost = 24 + 44 + 3

	// streamCost and sessionCost are what an open stream and a session take, in
	// bytes (TestHeldIsMemory, TestSessionCost).
	streamCost  = 2400
	sessionCost = 80 << 10

	// maxAnswers is how many bytes may wait in the Channel, because some frames do not
	// wait for room: SYN, FIN, UPD and notices of everything that may be open take a
	// hundredth of it.
	maxAnswers = 8 << 20
)

// config is smux's, the same for all.
var config = smux.Config{
	Version:           2,
	KeepAliveDisabled: true, // the carrier knows whether the other side is there
	MaxFrameSize:      frameSize,
	MaxReceiveBuffer:  math.MaxInt32, // maxHeld counts better
	MaxStreamBuffer:   math.MaxInt32, // each Stream knows better when to send a UPD
}

var (
	errFormat = errors.New("smux: malformed frame")
	errWindow = errors.New("smux: the other side ignores a window")
	errFlood  = errors.New("smux: the other side asks for more than it takes")
)

// A Channel is the one reliable stream of an engine. Read has one caller at a
// time; everything else may be called concurrently.
type Channel interface {
	// Read waits for bytes. When the channel has ended it returns what came
	// before, and then Err.
	Read(p []byte) (int, error)

	// Comes tells whether Read would not wait, or not for long. If it would, the
	// channel gets a token when that may have changed. It is for Read's one caller.
	Comes() (<-chan struct{}, bool)

	// Append writes parts one after the other, whether there is room or not, and does
	// not keep them. It returns how many bytes wait to be sent for the first time.
	Append(parts ...[]byte) (waiting int, err error)

	// Room tells whether there is room, or the channel has ended. If not, the channel
	// gets a token when that may have changed; there is one for all who wait.
	Room() (<-chan struct{}, bool)

	// Done is closed when the channel has ended; then Err says why, as
	// engine.Stream does. Until then Err is nil.
	Done() <-chan struct{}
	Err() error

	// Fail ends the channel because of err without waiting.
	Fail(err error)

	// Close ends the channel and returns when nothing of it touches the carrier
	// any more.
	Close() error
}

// wait waits until there is what look looks for, and returns false if one of the other
// two comes first.
func wait(look func() (<-chan struct{}, bool), changed, passed <-chan struct{}) bool {
	for token, ok := look(); !ok; token, ok = look() {
		select {
		case <-token:
		case <-changed:
			return false
		case <-passed:
			return false
		}
	}
	return true
}

// Session implements engine.Session. It is safe for concurrent use.
type Session struct {
	carrier  engine.Carrier // below the channel, which counts for itself; never changes, like what follows
	channel  Channel
	client   bool
	timer    *time.Timer   // nudges a server's session
	turn     chan struct{} // held by the Write whose frame goes next; others wait in order
	arrivals chan struct{} // has a token for each stream to accept
	drained  chan struct{} // has room for one token: unread frames were read
	nudge    chan struct{} // the same: the session may rest, or rests and is needed

	life sync.RWMutex  // held for reading while smux is called, and locked while the session rests
	smux *smux.Session // guarded by life; nil: the session rests

	busy    atomic.Bool // frames have come or gone, or somebody has waited for smux, since rest has looked
	putting sync.Mutex  // held while frames are put into the channel, one after the other
	opening []byte      // frames that wait for others; guarded by putting

	mu       sync.Mutex         // guards what follows, and in each Stream what says so
	streams  map[uint32]*Stream // those that this side has not closed, by number
	held     int                // bytes of memory, but for sessionCost
	promised int                // bytes that streams may take: what has not come, and what unread frames take
	over     bool               // the channel has ended, and all that came was seen
}

// New starts one side of a session over a channel, which it owns from now on, and
// which itself goes over pc.
func New(pc engine.Carrier, c Channel, client bool) *Session {
	s := &Session{
		carrier:  pc,
		channel:  c,
		client:   client,
		turn:     make(chan struct{}, 1),
		arrivals: make(chan struct{}, maxStreams),
		drained:  make(chan struct{}, 1),
		nudge:    make(chan struct{}, 1),
		streams:  make(map[uint32]*Stream),
	}
	s.timer = time.AfterFunc(restAfter, func() { half.Signal(s.nudge) })
	if client {
		s.timer.Stop()
	}
	pc.Hold(sessionCost)
	s.life.Lock()
	defer s.life.Unlock()
	s.begin(nil)
	return s
}

// hold counts n bytes more, or less. The mutex is held.
func (s *Session) hold(n int) {
	if s.held >= maxHeld && s.held+n < maxHeld {
		half.Signal(s.drained)
	}
	s.held += n
	s.carrier.Hold(n)
}

// Open implements engine.Session. What opens the stream is put before what is put next,
// or after engine.OpenDelay.
func (s *Session) Open(ctx context.Context) (engine.Stream, error) {
	if !s.client {
		return nil, engine.ErrRole
	}
	if err := cmp.Or(ctx.Err(), s.channel.Err()); err != nil {
		return nil, err
	}
	s.use()
	defer s.life.RUnlock()
	if s.smux.NumStreams() >= engine.MaxStreams {
		return nil, engine.ErrTooMany
	}
	str, err := s.smux.OpenStream() // its SYN comes to the tap, and ends there
	if err != nil {
		return nil, s.fail(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.putting.Lock()
	defer s.putting.Unlock()
	s.opening = append(append(s.opening, frame(cmdSYN, str.ID())...), s.add(str.ID())...)
	time.AfterFunc(engine.OpenDelay, func() { s.put() })
	st := s.streams[str.ID()]
	st.smux = str
	return st, nil
}

// Accept implements engine.Session. Streams that came before the other side
// ended the session can still be accepted.
func (s *Session) Accept(ctx context.Context) (engine.Stream, error) {
	if s.client {
		return nil, engine.ErrRole
	}
	select {
	case <-s.arrivals:
	default:
		select {
		case <-s.arrivals:
		case <-s.channel.Done():
			return nil, s.channel.Err()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s.use()
	defer s.life.RUnlock()
	return s.next()
}

// next takes from smux a stream that has arrived: it is there, or about to be put
// there by the goroutine that called the tap. life is held.
func (s *Session) next() (engine.Stream, error) {
	var err error
	for range 64 { // its select takes by chance what is ready, the session's end among it
		var str *smux.Stream
		if str, err = s.smux.AcceptStream(); err == nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			st := s.streams[str.ID()]
			st.smux = str
			return st, nil
		}
	}
	return nil, s.fail(err)
}

// fail ends the channel because of an error of smux, if it has not ended, and returns
// why it has.
func (s *Session) fail(err error) error {
	s.channel.Fail(fmt.Errorf("smux: %w", err))
	return s.channel.Err()
}

// Done implements engine.Session.
func (s *Session) Done() <-chan struct{} { return s.channel.Done() }

// Close implements engine.Session. smux has no way to wait for its goroutines;
// when Close returns they do not touch the channel again and are about to end.
func (s *Session) Close() error {
	err := s.channel.Close()
	s.wake()
	s.turn <- struct{}{} // no caller's bytes are in smux's queue
	s.use()              // from now on it rests no more
	s.timer.Stop()
	s.smux.Close()
	s.life.RUnlock()
	<-s.turn
	return err
}

// wake makes every waiting call look at the channel, which has ended.
func (s *Session) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	for _, st := range s.streams {
		half.Signal(st.Reads.Changed)
		half.Signal(st.Writes.Changed)
	}
}
