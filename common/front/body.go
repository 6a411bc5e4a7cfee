package front

import (
	"errors"
	"io"
	"net/http"
	"sync"
)

// errTaken is what a loan's body returns once the request has moved on to
// another connection.
var errTaken = errors.New("front: request moved to another connection")

// lend gives body to one call of send after another, until one of them has an
// answer, has begun to read it, or again says no. The error that again is asked
// about, and that lend returns, says by Unsent whether the body was read. Nobody
// else decides whether a request is sent again.
//
// body is closed once, as http.RoundTripper promises, perhaps after lend has
// returned. Nil is an empty one. Each send's error is an *Error, or one that
// leaves nothing to be tried.
func lend(body io.ReadCloser, send func(body io.ReadCloser) (*http.Response, error), again func(*Error) bool) (*http.Response, error) {
	if body == nil {
		body = http.NoBody
	}
	lent := &requestBody{body: body, close: sync.OnceValue(body.Close)}
	for {
		l := &loan{req: lent}
		resp, err := send(l)
		if err == nil {
			l.settle()
			return resp, nil
		}
		e, ok := err.(*Error)
		untouched := l.takeBack()
		if ok && e.Unsent != untouched {
			said := *e // others may have the same
			said.Unsent = untouched
			e, err = &said, &said
		}
		if !ok || !again(e) || !untouched {
			lent.close()
			return nil, err
		}
	}
}

// A requestBody is lent to one connection after another until one of them reads
// from it.
type requestBody struct {
	body  io.ReadCloser
	close func() error // closes body once
}

// A loan is the body as one connection sees it.
type loan struct {
	req *requestBody

	mu     sync.Mutex // guards what follows
	read   bool       // Read was called: the body is this connection's for good
	closed bool       // Close was called before any Read
	gone   bool       // taken back
	final  bool       // there will be no other loan
}

// Read reads the body, in pieces that each fit into an HTTP/2 frame.
func (l *loan) Read(p []byte) (int, error) {
	l.mu.Lock()
	if l.gone || l.closed {
		l.mu.Unlock()
		return 0, errTaken
	}
	l.read = true
	l.mu.Unlock()
	return l.req.body.Read(p[:min(len(p), dataFrame)])
}

// Close closes the body only if it will not be lent again.
func (l *loan) Close() error {
	l.mu.Lock()
	l.closed = true
	pass := (l.read || l.final) && !l.gone
	l.mu.Unlock()
	if pass {
		return l.req.close()
	}
	return nil
}

// takeBack returns whether the body is as it was before the loan. If so, the
// loan can no longer read it.
func (l *loan) takeBack() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = !l.read
	return l.gone
}

// settle says that there will be no other loan.
func (l *loan) settle() {
	l.mu.Lock()
	l.final = true
	closed := l.closed
	l.mu.Unlock()
	if closed {
		l.req.close()
	}
}

// A responseBody gives its place on a connection back when it has been read or
// closed, and says in its errors which front they come from.
type responseBody struct {
	body  io.ReadCloser
	place *place
}

func (b *responseBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	switch {
	case err == nil:
	case err == io.EOF:
		b.place.leave(nil)
	default:
		b.place.leave(err)
		err = b.place.err(err)
	}
	return n, err
}

func (b *responseBody) Close() error {
	err := b.body.Close()
	b.place.leave(nil)
	if err != nil {
		return b.place.err(err)
	}
	return nil
}
