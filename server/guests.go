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
	most int64 // bytes

	mu      sync.Mutex
	held    int64      // bytes; guarded by mu, like what follows
	waiting *list.List // of *guest, the oldest first
}

// A guest is one of these requests.
type guest struct {
	answer *http.ResponseController
	bytes  int64 // 0 when it is none any more; guarded by the guests' mu
}

// newGuests returns guests that together hold so many bytes, or one that holds more.
func newGuests(bytes int64) *guests {
	return &guests{most: bytes, waiting: list.New()}
}

// enter counts the request that w answers, which holds so many bytes, until leave is
// called.
func (g *guests) enter(w http.ResponseWriter, bytes int64) (leave func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.held+bytes > g.most && g.waiting.Len() > 0 {
		oldest := g.waiting.Front()
		g.remove(oldest)
		giveUp(oldest.Value.(*guest).answer)
	}
	g.held += bytes
	at := g.waiting.PushBack(&guest{http.NewResponseController(w), bytes})
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.remove(at)
	}
}

// remove takes one out; nothing happens if it has been given up. mu is held.
func (g *guests) remove(at *list.Element) {
	gone := at.Value.(*guest)
	g.waiting.Remove(at)
	g.held -= gone.bytes
	gone.bytes = 0
}

// giveUp ends a request's body and its answer, as their deadlines do.
func giveUp(c *http.ResponseController) {
	c.SetReadDeadline(time.Unix(1, 0))  //nolint:errcheck // HTTP/2 has deadlines
	c.SetWriteDeadline(time.Unix(1, 0)) //nolint:errcheck // likewise
}
