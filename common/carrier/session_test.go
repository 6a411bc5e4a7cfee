package carrier

import (
	"testing"
	"time"

	"turbotunnel/common/wire"
)

// TestTerm: when a session's time has come.
func TestTerm(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for what, c := range map[string]struct {
		term      term
		answering bool
		over      bool
	}{
		"new":                                  {term{lastSeen: ago(unconfirmedLife)}, false, false},
		"never confirmed":                      {term{lastSeen: ago(unconfirmedLife + 1)}, false, true},
		"never confirmed, and answered":        {term{lastSeen: ago(unconfirmedLife + 1)}, true, true},
		"confirmed":                            {term{lastSeen: ago(Lifetime), confirmed: true}, false, false},
		"silent":                               {term{lastSeen: ago(Lifetime + 1), confirmed: true}, false, true},
		"silent, and takes an answer":          {term{lastSeen: ago(Lifetime + 1), confirmed: true}, true, false},
		"says that it has ended":               {term{lastSeen: now, confirmed: true, ended: ago(farewellLife)}, false, false},
		"has said it":                          {term{lastSeen: now, confirmed: true, ended: ago(farewellLife + 1)}, true, true},
		"has ended, and was silent before":     {term{lastSeen: ago(Lifetime + 1), confirmed: true, ended: now}, false, true},
		"has ended, and was never confirmed":   {term{lastSeen: ago(unconfirmedLife + 1), ended: now}, false, true},
		"has ended, and takes the last answer": {term{lastSeen: ago(Lifetime + 1), confirmed: true, ended: now}, true, false},
	} {
		if over := c.term.isOver(now, c.answering); over != c.over {
			t.Errorf("%s: over %v", what, over)
		}
	}
	var e term
	e.end(now, wire.CloseRoom)
	e.end(now.Add(1), wire.CloseDone)
	if e.ended != now || e.reason != wire.CloseRoom {
		t.Errorf("ended at %v for %d", e.ended, e.reason)
	}
}
