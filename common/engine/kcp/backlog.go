package kcp

import "time"

const (
	// minBacklog and maxBacklog bound the bytes taken from the stream that the carrier
	// has not taken yet. KCP works through all that is in flight for each flush: with
	// 256 KB at most, a transfer with 200 ms and 500 Mbit/s takes a twentieth more of the
	// processors.
	minBacklog = 32 << 10
	maxBacklog = 1 << 20

	// freeBacklog is the bound where the carrier lets nothing wait, so that the
	// processors are the limit. What waits goes on in lumps of half of it, and behind
	// each stage after KCP, on both sides, stand as many bytes as the one before it
	// makes at a time. With 1 MB a ping beside a download on loopback takes 26 ms, with
	// 512 KB 22, with 256 KB 14, and with 128 KB 10, but then a download loses 7 % of
	// its rate.
	freeBacklog = 256 << 10

	// backlogTime is how long what is said next waits behind the backlog where the
	// carrier is the limit.
	backlogTime = 5 * time.Millisecond

	// slowWrite is how long a write takes for which the carrier had no room.
	slowWrite = time.Millisecond

	// backlogSpan is the least time over which is judged whether the carrier is the
	// limit. It takes bytes in lumps, as its acknowledgements come, some 30 ms apart:
	// judged from one flush to the next, the backlog is 1 MB after each of them, and
	// a ping beside a download with 100 ms and 100 Mbit/s takes 70 ms longer.
	backlogSpan = 50 * time.Millisecond
)

// A backlog says how many bytes may wait for the carrier. The driver's mutex
// guards it.
type backlog struct {
	limit   int  // bytes that may wait
	waits   bool // somebody was refused room and has not been told of any
	limited bool // somebody was refused room since the last flush

	waited  time.Time     // when the carrier has let us wait last
	since   time.Time     // when the span began
	taken   int           // bytes that the carrier has taken in it
	blocked time.Duration // how long it has let us wait in it
}

// grow has more wait before a flush, of which each takes its time, when the carrier
// has been waiting for us: up to freeBacklog, and no more than that from then on.
func (b *backlog) grow(now time.Time) {
	if b.limited && now.Sub(b.waited) > backlogTime {
		b.limit = min(2*b.limit, freeBacklog)
	}
	b.limited = false
}

// left takes note that the carrier has taken n bytes, for which it was waited so
// long.
func (b *backlog) left(n int, took time.Duration, now time.Time) {
	if took > slowWrite {
		b.waited = now
	}
	b.taken += n
	b.blocked += took
	span := now.Sub(b.since)
	if span < backlogSpan {
		return
	}
	if b.blocked > span/2 {
		rate := float64(b.taken) / span.Seconds()
		b.limit = min(max(int(rate*backlogTime.Seconds()), minBacklog), maxBacklog)
	}
	b.since, b.taken, b.blocked = now, 0, 0
}
