package carrier

import (
	"bytes"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"turbotunnel/common/handshake"
)

// TestAdmission: what each kind of first message is answered, without any session.
func TestAdmission(t *testing.T) {
	key := handshake.GenerateKey()
	hello := func(change func(*handshake.Hello)) (handshake.ID, []byte, *handshake.Initiator) {
		h := handshake.Hello{Version: handshake.Version, Time: time.Now(), Engine: "one"}
		change(&h)
		id := handshake.NewID(key.Public(), handshake.DayOf(time.Now()))
		msg, initiator, err := handshake.Initiate(key.Public(), id, h, 2000)
		if err != nil {
			t.Fatal(err)
		}
		return id, msg, initiator
	}
	for name, c := range map[string]struct {
		change   func(*handshake.Hello)
		status   byte
		untimely bool
	}{
		"good":    {func(*handshake.Hello) {}, handshake.Accepted, false},
		"engine":  {func(h *handshake.Hello) { h.Engine = "three" }, handshake.UnknownEngine, false},
		"version": {func(h *handshake.Hello) { h.Version++ }, handshake.UnknownVersion, false},
		"time":    {func(h *handshake.Hello) { h.Time = h.Time.Add(-2 * handshake.Skew) }, handshake.WrongTime, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var above account
				cfg := ServerConfig{Key: key, Engines: []string{"one", "two"}}
				a := newAdmission(&cfg, slog.New(slog.DiscardHandler), new(seldom), &above, defaultMemory)
				time.Sleep(time.Minute) // a server takes no time before its start for good
				id, msg, initiator := hello(c.change)
				if !a.expects(id) {
					t.Error("not expected")
				}
				w := a.welcome(id, msg)
				if w == nil {
					t.Fatal("no answer")
				}
				answer, keys, err := initiator.Finish(bytes.NewReader(w.answer))
				if err != nil || answer.Status != c.status || w.untimely != c.untimely || w.refused != (c.status != handshake.Accepted) {
					t.Fatalf("%+v, untimely %v, refused %v, %v", answer, w.untimely, w.refused, err)
				}
				if c.status == handshake.Accepted && (keys.Send == nil || w.keys.Send == nil) {
					t.Error("no keys")
				}
				if n := a.untimely.Load(); n != 0 != c.untimely {
					t.Errorf("%d untimely ones", n)
				}
				if again := a.welcome(id, msg); (again != nil) != c.untimely {
					t.Error("a repeated message: ", again)
				}
				if held := above.bytes(); (held != 0) == c.untimely {
					t.Errorf("%d bytes held", held)
				}
				if other, _, _ := hello(c.change); a.welcome(other, msg) != nil {
					t.Error("let through under another ID")
				}
				if a.close(); above.bytes() != 0 {
					t.Error("something is still held")
				}
			})
		})
	}
}
