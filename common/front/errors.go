package front

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
)

// An Op is the step of an exchange that failed.
type Op string

// The steps, in the order in which an exchange takes them.
const (
	// OpResolve: DNS has no address for the name to dial. Nothing was sent.
	OpResolve Op = "resolve"

	// OpConnect: no TCP connection to the front, or none in time. Nothing was
	// sent.
	OpConnect Op = "connect"

	// OpProxy: the configured proxy cannot be reached or refused; with a
	// *proxy.Error inside when the proxy answered. Nothing was sent.
	OpProxy Op = "proxy"

	// OpTLS: the handshake failed, or the certificate is not the front's.
	// Nothing was sent.
	OpTLS Op = "TLS handshake"

	// OpWait: all connections were busy until the exchange's context ended, or
	// the one that was not is of a kind that does not suit the request. Nothing
	// was sent, and nothing is known against the front.
	OpWait Op = "wait for a free connection"

	// OpHTTP: the exchange had a connection. The request may have reached the
	// server or not, unless Unsent is set.
	OpHTTP Op = "HTTP"
)

// Error is what RoundTrip returns, and what reading a response's body returns
// other than io.EOF.
//
// It matches os.ErrDeadlineExceeded and context.DeadlineExceeded when time ran
// out, and net.ErrClosed when the Front was closed. Its text names the front by
// its domain; network addresses appear only in the text of Err.
type Error struct {
	Op    Op
	Front string // the domain, as Name returns it

	// Unsent says that no octet of the request's body was read: to send the
	// request again repeats nothing.
	Unsent bool

	// Reused says that the connection had served exchanges before and ended
	// under this one. Servers and CDNs end connections at will, so it tells
	// nothing about the front's health: send the request again, now.
	Reused bool

	Err error
}

func newError(front string, op Op, err error) *Error {
	return &Error{Op: op, Front: front, Unsent: op != OpHTTP, Err: err}
}

// errClosed is the cause of what fails because a Front was closed.
var errClosed = fmt.Errorf("front closed: %w", net.ErrClosed)

// errNoFeed is the cause of what fails because a body of no known length has met a
// connection on which the browser sends none, as one over HTTP/1.1 is that follows one
// over HTTP/2. It says nothing about the front.
var errNoFeed = errors.New("a body without a length does not suit the connection")

func closedError(front string) *Error { return newError(front, OpWait, errClosed) }

func (e *Error) Error() string {
	return fmt.Sprintf("front %q: %s: %v", e.Front, e.Op, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes every kind of time-out match os.ErrDeadlineExceeded as well as
// context.DeadlineExceeded.
func (e *Error) Is(target error) bool {
	if target != os.ErrDeadlineExceeded && target != context.DeadlineExceeded {
		return false
	}
	return isTimeout(e.Err)
}

// isTimeout reports whether err says that time ran out, whoever says it.
func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

// Timeout reports whether time ran out.
func (e *Error) Timeout() bool { return e.Is(os.ErrDeadlineExceeded) }
