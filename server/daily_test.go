package main

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/internal/logtest"
)

// Each day has a line with what was done in it, and not before.
func TestSummarize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var sessions atomic.Int64
		count := int64(0)
		now := func() totals {
			count += 1000
			return totals{sessions: int(sessions.Load()), opened: count, down: count * 1e6}
		}
		var out logtest.Buffer
		done := make(chan struct{})
		go func() {
			summarize(ctx, now, slog.New(slog.NewTextHandler(&out, nil)))
			close(done)
		}()
		time.Sleep(time.Hour + time.Second)
		sessions.Store(7)
		time.Sleep(time.Hour)
		sessions.Store(1)
		time.Sleep(summaryEvery - 3*time.Hour)
		if synctest.Wait(); out.String() != "" {
			t.Errorf("before the day is over: %s", out.String())
		}
		time.Sleep(summaryEvery + time.Hour)
		cancel()
		<-done
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != 2 || !strings.Contains(lines[0], `"the last day" sessions=1440000 at_once=7 `) || !strings.Contains(lines[0], `megabytes_down=1440000`) || !strings.Contains(lines[1], `at_once=1 `) {
			t.Errorf("after two days:\n%s", out.String())
		}
	})
}
