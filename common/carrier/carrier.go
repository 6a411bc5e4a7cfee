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
//
// Where things are:
//
//	engine                                            engine
//	  |  Conn (conn.go)                                 |  Conn
//	link (link.go)                                    link
//	  outgoing: queue (queue.go), repair, window        the same
//	  incoming: order, gaps, news
//	  heads: numbers of heads, round trip
//	  |                                                 |
//	Client (client.go)                                Server (server.go)
//	  greet: the first message                        admission: what it is answered
//	  detect, path: what the path does                Session (session.go)
//	  plan: what to start, cancel and wait for          |
//	  exchange: one exchange                            |
//	  |                                                 |
//	Transport ----------------- HTTP ---------------> ServeHTTP
//
// A link does no I/O; its halves and the plan know no time but what they are
// told. So each decision is a function that a table tests. shape.go has what both
// sides do so that lengths and times tell nothing, recall.go what sessions tell
// each other.
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

	// smallUnit is the size in bytes of the largest record where it is not known
	// yet that large bodies pass, or known that they do not: a record that has a
	// number cannot be made smaller. It is sealed in a buffer of 2 KB. smallBody is
	// that of the smallest limit that is tried: a path that carries less does not
	// carry a first message.
	smallUnit = 2<<10 - unitScratch
	smallBody = 4 << 10

	// unitScratch is what a buffer has beyond a unit that is sealed in it.
	unitScratch = wire.SealRoom - (wire.Overhead - wire.HeaderSize)
)

// roomFor is what a body of at most limit bytes has for records, if these are at
// most as large as unit. Where units are small, so are heads.
func roomFor(limit, unit int) int {
	if unit < wire.MaxUnit {
		return limit - min(headRoom, limit/4)
	}
	return limit - headRoom
}

// unitOf is the size of the largest record that a head asks for.
func unitOf(h *wire.Head) int {
	if h.Unit == 0 {
		return wire.MaxUnit
	}
	return min(max(h.Unit, smallUnit/4), wire.MaxUnit)
}

// A Transport makes exchanges by way of a front that it chooses, and is the one
// authority on how fronts fare: a session judges only itself. Safe for concurrent
// use.
type Transport interface {
	// RoundTrip makes an exchange. It must not repeat the request, must close
	// the request's body, and must begin to read it only when the connection that
	// carries it is ready.
	http.RoundTripper

	// Name names the front that carries now. What a Path learns of the way
	// through it is remembered by that name.
	Name() string

	// Slots is how many exchanges a session may have under way at once, at least
	// 1. It may change. Crowded says that sessions share so few that one which
	// has nothing to say keeps others waiting.
	Slots() (n int, crowded bool)

	// Feeds tells whether a request may have a body that is written bit by bit and
	// has no length: whether it looks like what browsers do, where the Transport's
	// shall. It may change.
	Feeds() bool

	// Rest is how long the fronts have asked to be left alone (Retry-After):
	// 0 while there is one that has not.
	Rest() time.Duration

	// Foreign is told of an answer of status 200 that was not the server's,
	// before its body is closed. What another status says of a front, the
	// Transport sees by itself.
	Foreign(resp *http.Response)
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

	// ErrClock: the first message of the session was refused for its time, which is
	// known now, or for its day. What it carried cannot be sent in another session:
	// somebody may have kept it, and deliver it when its time has come. In a new
	// session new things can be said.
	ErrClock = errors.New("the first message came at a wrong time, and what was said first may be lost")

	// ErrLost: the session ended because nothing came through for Lifetime, or
	// because the other side ended it.
	ErrLost = errors.New("session lost")
)
