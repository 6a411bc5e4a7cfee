package main

import (
	"context"
	"log/slog"
	"time"
)

const (
	// summaryEvery is how often the log has a line of what was done.
	summaryEvery = 24 * time.Hour

	// peakEvery is how often is looked how many sessions there are.
	peakEvery = time.Minute
)

// totals are counts since the start, but for sessions.
type totals struct {
	sessions         int // now
	opened, cut      int64
	streams, refused int64
	up, down         int64 // bytes
	closed           int64 // connections that made room for others
	requests         int64
}

func (s *service) totals() totals {
	stats := s.tunnel.Stats()
	return totals{
		sessions: stats.Sessions,
		opened:   int64(stats.Opened),
		cut:      int64(stats.Crowded + stats.Evicted),
		streams:  int64(stats.Accepted),
		refused:  int64(s.streams.refused.Load()),
		up:       int64(s.streams.up.Load()),
		down:     int64(s.streams.down.Load()),
		closed:   int64(s.door.closed.Load()),
		requests: int64(s.requests.Load()),
	}
}

// summarize writes once a day what was done in it, until ctx ends: for those who
// have no Prometheus. There are counts in it and nothing else, as in metrics.
func summarize(ctx context.Context, now func() totals, log *slog.Logger) {
	look := time.NewTicker(peakEvery)
	defer look.Stop()
	before, since, peak := now(), time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return
		case at := <-look.C:
			n := now()
			peak = max(peak, n.sessions)
			if at.Sub(since) < summaryEvery {
				continue
			}
			log.Info("the last day",
				"sessions", n.opened-before.opened, "at_once", peak, "sessions_cut", n.cut-before.cut,
				"streams", n.streams-before.streams, "streams_refused", n.refused-before.refused,
				"megabytes_up", (n.up-before.up)/1e6, "megabytes_down", (n.down-before.down)/1e6,
				"connections_cut", n.closed-before.closed, "requests", n.requests-before.requests)
			before, since, peak = n, at, 0
		}
	}
}
