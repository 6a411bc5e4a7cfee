// Package lull makes reads as large as what has arrived. Who reads a connection on
// which much comes bit by bit is woken for each bit, and after him everybody through
// whose hands it goes. So when he has waited for a bit he sleeps for a moment, and
// more comes with it.
package lull

import (
	"io"
	"time"
)

const (
	// A lull takes a share of the round trip, and most at most: what comes is later by
	// that. Where it would be shorter than least there is none. With 100 ms and 100
	// Mbit/s, where 16 KB come each 1.3 ms, a client's threads are woken 230 times for
	// each megabyte of a download in place of 300 to 350, and a server's 240 times for
	// one of an upload in place of 380; with lulls twice as long it is hardly less.
	share = 32
	most  = 4 * time.Millisecond
	least = time.Millisecond

	// busy is how many bytes have to come within two lulls for there to be another one:
	// more than what is said in a conversation, at 100 ms 20 Mbit/s.
	busy = 14 << 10

	// waiting is how long a read takes that has waited, at least: a slow processor
	// takes as long to copy, so one that has filled its buffer has not. While there is
	// something to read nobody sleeps, also where each read returns but a part of it:
	// one by way of a proxy's TLS returns a record.
	waiting = 50 * time.Microsecond
)

// A Lull belongs to who reads one connection. The zero value sleeps never.
type Lull struct {
	length time.Duration // 0: there are none
	since  time.Time     // the end of the last one, or when it was seen last that little comes
	came   int           // bytes since then
}

// Trip says how long a round trip on the connection takes.
func (l *Lull) Trip(trip time.Duration) {
	if l.length = min(trip/share, most); l.length < least {
		l.length = 0
	}
}

// Read reads from the connection, and may sleep before it returns.
func (l *Lull) Read(from io.Reader, p []byte) (int, error) {
	if l.length == 0 {
		return from.Read(p)
	}
	began := time.Now()
	n, err := from.Read(p)
	l.came += n
	now := time.Now()
	if n == len(p) || err != nil || now.Sub(began) < waiting {
		return n, err
	}
	if now.Sub(l.since) < 2*l.length {
		if l.came < busy {
			return n, err
		}
		time.Sleep(l.length)
		now = time.Now()
	}
	l.since, l.came = now, 0
	return n, err
}
