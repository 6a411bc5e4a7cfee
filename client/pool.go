package main

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// maxLinks bounds the dialers that exist at once. Tor uses a few bridges;
	// this is for a client that makes up arguments without end.
	maxLinks = 32

	// idleTime is how long a dialer without a stream is kept. Its session
	// costs three requests a minute, which also show an observer that
	// somebody is there; a new one costs no extra round trip. Tor opens its
	// next connection within this time when it wants one soon.
	idleTime = 2 * time.Minute
)

// A pool holds one dialer for each configuration in use, so that requests with
// equal arguments share sessions. Safe for concurrent use.
type pool struct {
	open func(config) (dialer, error)

	mu     sync.Mutex
	links  map[config]*link
	closed bool

	closing sync.WaitGroup // dialers being closed
}

// A link is a dialer with those who use it.
type link struct {
	dialer
	cfg config

	// Guarded by the pool's mu.
	users int
	idle  *time.Timer // runs while there are no users
	freed time.Time   // when the last user left
	up    bool        // a stream was opened, and no session lost since
}

func newPool(open func(config) (dialer, error)) *pool {
	return &pool{open: open, links: make(map[config]*link)}
}

// acquire returns the link for cfg. Its user calls release once.
func (p *pool) acquire(cfg config) (*link, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errors.New("the program is ending")
	}
	l := p.links[cfg]
	if l == nil {
		if len(p.links) >= maxLinks && !p.evict() {
			return nil, fmt.Errorf("%d bridges with different arguments are in use, and no more are possible", maxLinks)
		}
		d, err := p.open(cfg)
		if err != nil {
			return nil, err
		}
		l = &link{dialer: d, cfg: cfg}
		p.links[cfg] = l
	}
	l.users++
	if l.idle != nil {
		l.idle.Stop()
		l.idle = nil
	}
	return l, nil
}

// release gives l back.
func (p *pool) release(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l.users--
	if l.users > 0 || p.closed {
		return
	}
	l.freed = time.Now()
	l.idle = time.AfterFunc(idleTime, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		// It may have found a user between the timer's end and here.
		if l.users == 0 && p.links[l.cfg] == l {
			p.drop(l)
		}
	})
}

// evict drops the link that has been idle longest, and tells whether there was
// one. The caller holds p.mu.
func (p *pool) evict() bool {
	var oldest *link
	for _, l := range p.links {
		if l.users == 0 && (oldest == nil || l.freed.Before(oldest.freed)) {
			oldest = l
		}
	}
	if oldest != nil {
		p.drop(oldest)
	}
	return oldest != nil
}

// drop forgets l and closes its dialer, which may wait for the network. The
// caller holds p.mu.
func (p *pool) drop(l *link) {
	if l.idle != nil {
		l.idle.Stop()
	}
	delete(p.links, l.cfg)
	p.closing.Go(func() { l.Close() })
}

// setUp notes whether l's session is known to work, and tells whether that is
// news.
func (p *pool) setUp(l *link, up bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	news := l.up != up
	l.up = up
	return news
}

// Close closes every dialer and returns when that is done.
func (p *pool) Close() {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		for _, l := range p.links {
			p.drop(l)
		}
	}
	p.mu.Unlock()
	p.closing.Wait()
}
