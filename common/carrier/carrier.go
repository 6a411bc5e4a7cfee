// Package carrier moves an engine's datagrams between a client and a server in
// HTTP exchanges, of which any may be late, cut, repeated or lost.
//
// A Client makes exchanges by way of a Transport. A Server is an http.Handler.
// Each gives a session's engine a Conn. Between the two stands a link on each
// side: it puts datagrams into numbered records, acknowledges, repairs, drops
// what comes twice, and delivers in order.
//
// A request is POST PATH/ID, where PATH is that of the server's URL and ID
// names the session (package handshake). Nothing else about it is the same
// always: lengths and times are drawn below the limits that hold. Until the
// server has answered, its body is the session's first message; afterwards it
// is units (package wire): a head first, then records. The answer is status 200
// and a body of units that begins with a head; the answer to the first message
// has the second message before them. Whatever else comes back is a foreign
// answer: the exchange is lost, and the session goes on.
//
// Exchanges are numbered by the client, from 0. The head of a request says
// what the answer shall be: at once (Hold 0), later if there is nothing to say
// yet (a poll), or written bit by bit (a stream).
package carrier

import (
	"errors"
	"net/http"
	"time"

	"turbotunnel/common/wire"
)

// Mode is how a client receives.
type Mode string

const (
	Auto   Mode = "auto"   // polls until the path has shown that it streams, and whenever it does not
	Poll   Mode = "poll"   // answers of known length, always
	Stream Mode = "stream" // answers that stay open, unless the path holds them back
)

const (
	// Lifetime is how long a session lives on without any exchange that
	// succeeds. It outlasts a tunnel, a lift and a change of network.
	Lifetime = 5 * time.Minute

	// MaxBody is the size in bytes of the largest body of a request, unless few
	// requests at once are what limits a transfer. Many CDNs and nginx's default
	// (client_max_body_size) end at one million or 1 MiB. Then it is tried whether
	// the path takes more, up to largestBody.
	MaxBody     = 960 << 10
	largestBody = 4 << 20

	// headRoom is the number of bytes that a limit for bodies leaves to heads:
	// the largest one has somewhat less.
	headRoom = 8 << 10

	// minBody is the size in bytes of the smallest limit that a body can have:
	// one record and its head.
	minBody = wire.MaxUnit + headRoom
)

// A Transport makes exchanges. It must not repeat a request, must close the
// request's body, and must begin to read it only when the connection that
// carries it is ready. Safe for concurrent use.
//
// It may also have a method Name() string, the name of the front that carries
// now, by which a Path remembers; and Foreign(*http.Response), which is called
// with an answer of status 200 that was not the server's.
type Transport interface {
	http.RoundTripper

	// MaxInFlight is how many exchanges a session may have under way at once,
	// at least 1. It may change. 1 means that there is a crowd: other sessions
	// wait for their turn.
	MaxInFlight() int
}

// Errors of a session, to be tested with errors.Is.
var (
	// ErrUnreachable: no exchange came through, or a gateway answered that it
	// cannot reach the server.
	ErrUnreachable = errors.New("server unreachable")

	// ErrNotServer: something answered, but not under the server's key.
	ErrNotServer = errors.New("what answered is not the server with this key")

	// ErrRefused: the server answered under its key and refused the engine or
	// the version of the protocol.
	ErrRefused = errors.New("refused by the server")

	// ErrLost: the session ended because nothing came through for Lifetime, or
	// because the other side ended it.
	ErrLost = errors.New("session lost")
)
