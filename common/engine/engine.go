// Package engine states what a reliable-transport protocol must do to carry
// byte streams over the datagrams of a carrier.
//
// An engine knows net and nothing else: neither HTTP nor Tor. The carrier
// below it hands over one Carrier for each session; the engine runs one
// conversation of its protocol on it and turns it into streams. Package
// engines is the one place that names every engine there is.
package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// MaxStreams is how many streams a session may have open at a time: several times as
// many as a browser has connections. Who needs more opens another session.
const MaxStreams = 256

// MaxDatagram is the size in bytes of the largest datagram that every carrier takes:
// pion/sctp reads no larger one.
const MaxDatagram = 8192

// OpenDelay is how long the opening of a stream waits for its first bytes, so that a
// write which follows at once goes in the same datagram.
const OpenDelay = 2 * time.Millisecond

// FarewellTime is how long Session.Close waits for a blocked Carrier before it
// gives up telling the other side.
const FarewellTime = 100 * time.Millisecond

var (
	// ErrClosed is what everything returns on a session or a stream that this side
	// has closed. It matches net.ErrClosed.
	ErrClosed = fmt.Errorf("engine: %w", net.ErrClosed)

	// ErrSingleStream is what Open and Accept return where an engine does not
	// multiplex, but for the client's first Open and the server's first Accept.
	ErrSingleStream = errors.New("engine: this engine has one stream a session")

	// ErrRole is what a server's Open and a client's Accept return where an engine
	// multiplexes.
	ErrRole = errors.New("engine: only the client opens streams, and only the server accepts them")

	// ErrTooMany is what Open returns on a session that has MaxStreams already, if
	// it does not wait for one of them to end.
	ErrTooMany = fmt.Errorf("engine: %d streams are open on this session; close some or open another session", MaxStreams)

	// ErrReset is what Read and Write return after the other side has reset the
	// stream, what Write returns after the other side has closed it, and what
	// every stream returns when its session ended under it.
	ErrReset = errors.New("engine: stream reset")
)

// Engine starts sessions of one reliable-transport protocol.
// It is safe for concurrent use and holds no state of its sessions.
type Engine interface {
	// Name is the engine's name in bridge lines and on the wire.
	Name() string

	// Multiplexes tells whether a session carries more than one stream. If
	// not, Open succeeds once on the client and Accept once on the server.
	Multiplexes() bool

	// Client and Server start an end of a session over pc, which it owns from now on
	// and closes. They do not wait for the network: what the protocol has to say first
	// is written to pc at once, so that it can travel in the session's first message.
	Client(pc Carrier) (Session, error)
	Server(pc Carrier) (Session, error)
}

// A Carrier is the pipe of datagrams below one session: all that an engine may
// know of it.
//
// Datagrams up to MaxDatagram bytes arrive unaltered or not at all, in order or
// not. WriteTo does not keep its argument, and blocks when there is no room. Close
// unblocks ReadFrom and WriteTo. Deadlines work. All methods may be called
// concurrently, ReadFrom and WaitRead by one reader.
type Carrier interface {
	net.PacketConn

	// RemoteAddr is given to WriteTo, and means nothing.
	RemoteAddr() net.Addr

	// WaitRead returns when ReadFrom would return at once, or when that is not
	// known: who waits long for a datagram needs no buffer meanwhile.
	WaitRead()

	// Binding is a secret that only the two ends of the sealed session below
	// know, and nil where there is none, or not yet.
	Binding() []byte

	// Hold says that the engine holds n bytes more for the other side than before, or
	// fewer if n is negative: what has come and was not read, and what waits to be sent
	// or to be acknowledged, at what its memory takes. The carrier counts it with its
	// own in the session's account, and closes under a session that holds more than
	// its share. It never blocks, and at the session's end nothing has to be given back.
	Hold(n int)

	// Promise says that the other side may have this one hold n bytes more until they
	// are read, what has come included, or fewer. It returns how many more all sessions
	// together may be promised, without end where memory has no limit. Else like Hold.
	Promise(n int) (left int)
}

// A Session is one conversation between a client and a server.
//
// The client opens streams, the server accepts them. All methods may be called
// concurrently.
type Session interface {
	// Open returns a new stream. It may wait until the session's two ends have
	// spoken, not longer than ctx and the session last. The server's Accept
	// returns its end even when no byte is ever written to it.
	Open(ctx context.Context) (Stream, error)

	// Accept waits for a stream opened by the other side.
	Accept(ctx context.Context) (Stream, error)

	// Done is closed when the session has ended: by Close, by the other side's Close,
	// because the Carrier failed, or, where an engine does not multiplex, because the
	// stream is over: each side has read its end or closed it.
	Done() <-chan struct{}

	// Close ends the session, every stream in it and the Carrier, and returns when nothing
	// of the session touches the Carrier any more. What was written may be lost, unless
	// the other side has read the ends of its streams. Closing twice is allowed.
	Close() error
}

// A Stream is a reliable, ordered, full-duplex byte stream.
//
// Read and Write may be called concurrently with each other and with all other
// methods; deadlines work as net.Conn says and match os.ErrDeadlineExceeded.
// After the last byte Read returns io.EOF if the other side has ended its direction,
// and an error that matches ErrReset if the stream ended otherwise.
// A Read that has timed out has read nothing. A Write that has timed out has written
// exactly the bytes that it counts, keeps no part of its argument, and may be followed
// by others.
//
// Write blocks when the other side does not read: the memory that a stream
// holds is bounded on both sides. A stream that is not read does not stall the
// others of its session.
type Stream interface {
	net.Conn

	// CloseWrite ends this side's direction: after what was written, the
	// other side reads io.EOF. The other direction goes on. It does not wait.
	CloseWrite() error

	// Close ends both directions. What was written before is still delivered,
	// followed by io.EOF; it does not wait for that. What arrives afterwards is
	// thrown away, and the other side's Write fails in the end with ErrReset.
	// On this side every call fails at once with ErrClosed.
	Close() error

	// Reset ends both directions and says that something has failed: the other
	// side's Read and Write return ErrReset, Read after what it was sent before
	// where the protocol keeps that order. An end of file that it has read stays
	// one; one that was sent by CloseWrite and not read yet becomes a failure where
	// the protocol can say that (QUIC's cannot, once it has arrived). On this side
	// it is like Close. On a stream that was closed it does nothing.
	Reset() error
}
