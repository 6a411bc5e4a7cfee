package main

import (
	"container/list"
	"net/http"
	"sync"
	"time"
)

// Guests are the requests over HTTP/2 that trusted proxies pass on and that are not
// known to be clients'. Such a proxy's connection is everybody's, so that it cannot be
// closed for what one of them holds: the oldest request is given up for the newest
// instead. Over HTTP/1 each has a connection, which the door counts. Safe for
// concurrent use.
type guests struct {
	most int // requests

	mu      sync.Mutex
	waiting *list.List // of *http.ResponseController, the oldest first; guarded by mu
}

// newGuests returns guests that together hold so many bytes.
func newGuests(bytes int64) *guests {
	return &guests{most: max(int(bytes/requestCost), 1), waiting: list.New()}
}

// enter counts the request that w answers until leave is called.
func (g *guests) enter(w http.ResponseWriter) (leave func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting.Len() >= g.most {
		giveUp(g.waiting.Remove(g.waiting.Front()).(*http.ResponseController))
	}
	at := g.waiting.PushBack(http.NewResponseController(w))
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.waiting.Remove(at) // nothing happens if it has been given up
	}
}

// giveUp ends a request's body and its answer, as their deadlines do.
func giveUp(c *http.ResponseController) {
	c.SetReadDeadline(time.Unix(1, 0))  //nolint:errcheck // HTTP/2 has deadlines
	c.SetWriteDeadline(time.Unix(1, 0)) //nolint:errcheck // likewise
}
