//go:build !race

package pace

import (
	"fmt"
	"io"
	"testing"
	"time"

	"turbotunnel/common/engines"
)

// TestMonth: one stream lives for thirty days, on which little is said, and in the
// end it is as fast as a new one.
func TestMonth(t *testing.T) {
	for _, engine := range engines.Names() {
		for _, way := range []string{"streamed", "polled"} {
			if way == "polled" && engine != engines.Default {
				continue // for the engine it is the same
			}
			t.Run(fmt.Sprint(engine, "/", way), func(t *testing.T) {
				act(t, row{engine: engine, scheme: "http", way: way, rtt: 50 * time.Millisecond, rate: 10e6}, func(s *scene) {
					st := s.start('e', 0)
					defer st.Close()
					for hour := range 30 * 24 {
						time.Sleep(time.Hour)
						text := fmt.Sprintf("%4d", hour)
						begun := time.Now()
						if _, err := io.WriteString(st, text); err != nil {
							t.Fatalf("after %d hours: %v", hour, err)
						}
						got := make([]byte, len(text))
						if _, err := io.ReadFull(st, got); err != nil || string(got) != text {
							t.Fatalf("after %d hours: %q, %v", hour, got, err)
						}
						if took := time.Since(begun); took > 5*time.Second {
							t.Errorf("after %d hours a word took %v there and back", hour, took)
						}
					}
				})
			})
		}
	}
}
