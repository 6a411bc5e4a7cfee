package socks

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// maxEntries bounds the dialers that exist at once. Tor uses a few bridges;
	// this is for a client that makes up arguments without end.
	maxEntries = 32

	// idleTime is how long a dialer without a stream is kept. Its session
	// costs a request or two a minute, which also show an observer that
	// somebody is there; a new one costs no extra round trip. Tor opens its
	// next connection within this time when it wants one soon. What was written before
	// the last stream was closed may take longer: while it may be on its way it is
	// looked at again after lookTime, unless the server has not been heard for as long.
	idleTime = 2 * time.Minute
	lookTime = 30 * time.Second
)

// A pool holds one dialer for each configuration in use, so that requests with
// equal arguments share sessions. Safe for concurrent use.
type pool struct {
	open func(config) (Dialer, error)

	mu      sync.Mutex
	entries map[config]*entry
	closed  bool

	closing sync.WaitGroup // dialers being closed
}

// An entry is a dialer with those who use it.
type entry struct {
	Dialer
	cfg config

	// Guarded by the pool's mu.
	users int
	idle  *time.Timer // runs while there are no users
	freed time.Time   // when the last user left
	up    bool        // a stream was opened, and no session lost since
}

func newPool(open func(config) (Dialer, error)) *pool {
	return &pool{open: open, entries: make(map[config]*entry)}
}

// acquire returns the entry for cfg. Its user calls release once.
func (p *pool) acquire(cfg config) (*entry, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errors.New("the program is ending")
	}
	e := p.entries[cfg]
	if e == nil {
		if len(p.entries) >= maxEntries && !p.evict() {
			return nil, fmt.Errorf("%d bridges with different arguments are in use, and no more are possible", maxEntries)
		}
		d, err := p.open(cfg)
		if err != nil {
			return nil, err
		}
		e = &entry{Dialer: d, cfg: cfg}
		p.entries[cfg] = e
	}
	e.users++
	if e.idle != nil {
		e.idle.Stop()
		e.idle = nil
	}
	return e, nil
}

// release gives e back.
func (p *pool) release(e *entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.users--
	if e.users > 0 || p.closed {
		return
	}
	e.freed = time.Now()
	p.wait(e, idleTime)
}

// wait has e be dropped after a time, if it has no user then and nothing is on its way.
// The caller holds p.mu.
func (p *pool) wait(e *entry, d time.Duration) {
	e.idle = time.AfterFunc(d, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		// It may have found a user between the timer's end and here.
		if e.users > 0 || p.entries[e.cfg] != e {
			return
		}
		if pending, heard := e.Pending(); pending && time.Since(heard) < lookTime {
			p.wait(e, lookTime)
			return
		}
		p.drop(e)
	})
}

// evict drops the entry without users that is missed least, and tells whether there
// was one: of those on which nothing is on its way, the one that has been idle longest,
// else the one whose server has not been heard for the longest. The caller holds p.mu.
func (p *pool) evict() bool {
	var least *entry
	var since time.Time
	leastPending := true
	for _, e := range p.entries {
		if e.users > 0 {
			continue
		}
		pending, at := e.Pending()
		if !pending {
			at = e.freed
		}
		if least == nil || leastPending && !pending || leastPending == pending && at.Before(since) {
			least, leastPending, since = e, pending, at
		}
	}
	if least != nil {
		p.drop(least)
	}
	return least != nil
}

// drop forgets e and closes its dialer, which may wait for the network. The
// caller holds p.mu.
func (p *pool) drop(e *entry) {
	if e.idle != nil {
		e.idle.Stop()
	}
	delete(p.entries, e.cfg)
	p.closing.Go(func() { e.Close() })
}

// setUp notes whether e's session is known to work, and tells whether that is
// news.
func (p *pool) setUp(e *entry, up bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	news := e.up != up
	e.up = up
	return news
}

// Close closes every dialer and returns when that is done.
func (p *pool) Close() {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		for _, e := range p.entries {
			p.drop(e)
		}
	}
	p.mu.Unlock()
	p.closing.Wait()
}
