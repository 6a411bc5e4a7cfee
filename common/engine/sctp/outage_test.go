package sctp

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/engine/enginetest"
)

func TestRepairedOutage(t *testing.T) {
	for _, tt := range []struct {
		rate, queue int
		outage      time.Duration
	}{{8 << 20, 1 << 20, 3 * time.Second}, {8 << 20, 64 << 20, 3 * time.Second}, {8 << 20, 1 << 20, 20 * time.Second}, {0, 64 << 20, 20 * time.Second},{1<<20, 4<<20, 0}} {
		synctest.Test(t, func(t *testing.T) {
			path := enginetest.Path{Delay: 50 * time.Millisecond, Rate: tt.rate, Queue: tt.queue, Repair: 150 * time.Millisecond}
			a, b := enginetest.Connect(path, path, 1)
			client, _ := Engine{}.Client(a)
			server, _ := Engine{}.Server(b)
			defer client.Close()
			defer server.Close()
			c, _ := client.Open(context.Background())
			go func() {
				for range 1000 {
					c.Write(make([]byte, 32<<10))
				}
				c.CloseWrite()
			}()
			cut := time.AfterFunc(time.Second, func() {
				a.SetDown(true)
				time.Sleep(tt.outage)
				a.SetDown(false)
			})
			defer cut.Stop()
			start := time.Now()
			s, _ := server.Accept(context.Background())
			n, err := io.Copy(io.Discard, s)
			t.Logf("%+v %d %v in %v: %+v; up %+v", tt, n, err, time.Since(start), client.(*session).Stats(), a.Sent())
		})
	}
}
