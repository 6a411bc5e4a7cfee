package faults

import (
	"net/http"
	"time"

	"turbotunnel/test/middlebox"
)

// A fault is a row of the table.
type fault struct {
	name string
	do   func(s *scene) middlebox.Fault // what happens to each exchange; it may do more by itself
	ends time.Duration                  // the fault is over after that; 0: it stays
	size int64                          // bytes in each direction; 0: usual
	full bool                           // another session may be refused meanwhile
	late bool                           // it has no sense at the start of a session
}

// usual is how many bytes move in each direction while a fault stays.
const usual = 150 << 10

// page is what a portal shows.
const page = "<!DOCTYPE html>\n<html><body><form>Please log in</form></body></html>\n"

const html = "text/html; charset=utf-8"

// burst is how long something lasts that lets nothing through.
const burst = 3 * time.Second

// every makes a fault of one that needs nothing of the scene.
func every(f middlebox.Fault) func(*scene) middlebox.Fault {
	return func(*scene) middlebox.Fault { return f }
}

// some makes a fault happen to a share of exchanges.
func some(share float64, f middlebox.Fault) func(*scene) middlebox.Fault {
	return func(s *scene) middlebox.Fault { return middlebox.Sometimes(s.dice, share, f) }
}

// alone lets one exchange through at a time.
func alone(refuse int) func(*scene) middlebox.Fault {
	return func(*scene) middlebox.Fault { return middlebox.OneAtATime(refuse) }
}

// again does something to the path at once and after pauses, so many times.
func again(times int, pause time.Duration, what func(s *scene)) func(*scene) middlebox.Fault {
	return func(s *scene) middlebox.Fault {
		for i := range times {
			time.AfterFunc(time.Duration(i)*pause, func() { what(s) })
		}
		return nil
	}
}

var table = []fault{
	{name: "nothing", do: every(nil)},

	{name: "requests lost before the server", do: some(0.2, middlebox.Lose)},
	{name: "requests refused unread", do: some(0.2, middlebox.Refuse)},
	{name: "requests swallowed", do: some(0.05, middlebox.Swallow)},
	{name: "answers lost", do: func(s *scene) middlebox.Fault {
		return middlebox.Sometimes(s.dice, 0.2, middlebox.CutAnswers(s.dice, 0))
	}},
	{name: "requests repeated", do: some(0.5, middlebox.Repeat(true))},
	{name: "requests repeated, second answer", do: some(0.5, middlebox.Repeat(false))},
	{name: "requests cut", do: func(s *scene) middlebox.Fault {
		return middlebox.Sometimes(s.dice, 0.3, middlebox.CutRequests(s.dice, 40000))
	}},
	{name: "requests shortened", do: func(s *scene) middlebox.Fault {
		return middlebox.Sometimes(s.dice, 0.3, middlebox.ShortRequests(s.dice, 40000))
	}},
	{name: "answers cut", do: func(s *scene) middlebox.Fault {
		return middlebox.Sometimes(s.dice, 0.5, middlebox.CutAnswers(s.dice, 40000))
	}},
	{name: "answers shortened", do: func(s *scene) middlebox.Fault {
		return middlebox.Sometimes(s.dice, 0.5, middlebox.ShortAnswers(s.dice, 40000))
	}},

	{name: "429 with Retry-After", do: some(0.1, middlebox.Status(http.StatusTooManyRequests, "", "Retry-After", "1"))},
	{name: "429 with a date", do: some(0.1, middlebox.RestAsDate(2*time.Second))},
	{name: "429 throughout", do: every(middlebox.Status(http.StatusTooManyRequests, "", "Retry-After", "1")), ends: burst},
	{name: "502", do: some(0.3, middlebox.Status(http.StatusBadGateway, page, "Content-Type", html))},
	{name: "502 throughout", do: every(middlebox.Status(http.StatusBadGateway, "")), ends: burst},
	{name: "503", do: some(0.3, middlebox.Status(http.StatusServiceUnavailable, ""))},
	{name: "503 with Retry-After throughout", do: every(middlebox.Status(http.StatusServiceUnavailable, "", "Retry-After", "2")), ends: burst},
	{name: "403", do: some(0.3, middlebox.Status(http.StatusForbidden, page, "Content-Type", html))},
	{name: "403 throughout", do: every(middlebox.Early(http.StatusForbidden, page, "Content-Type", html)), ends: burst},
	{name: "404 throughout", do: every(middlebox.Status(http.StatusNotFound, "")), ends: burst},
	{name: "413 above 64 KB", do: every(middlebox.Large(64<<10, middlebox.Early(http.StatusRequestEntityTooLarge, ""))), size: 600 << 10},
	{name: "413 above 8 KB", do: every(middlebox.Large(8<<10, middlebox.Status(http.StatusRequestEntityTooLarge, "")))},
	{name: "403 above 16 KB", do: every(middlebox.Large(16<<10, middlebox.Status(http.StatusForbidden, page)))},
	{name: "502 above 16 KB", do: every(middlebox.Large(16<<10, middlebox.Status(http.StatusBadGateway, "")))},
	{name: "503 above 16 KB", do: every(middlebox.Large(16<<10, middlebox.Status(http.StatusServiceUnavailable, "")))},
	{name: "resets above 16 KB", do: every(middlebox.Large(16<<10, middlebox.Refuse))},
	{name: "silence above 16 KB", do: every(middlebox.Large(16<<10, middlebox.Swallow))},
	{name: "502 for answers above 16 KB", do: every(middlebox.WholeAnswers(16 << 10))},

	{name: "streams reset", do: func(s *scene) middlebox.Fault {
		return middlebox.Sometimes(s.dice, 0.5, middlebox.Ends(0, 50*time.Millisecond))
	}},
	{name: "GOAWAY in mid-transfer", do: some(0.2, middlebox.GoAway)},
	{name: "GOAWAY throughout", do: every(middlebox.GoAway)},

	{name: "HTML with status 200", do: some(0.3, middlebox.Status(http.StatusOK, page, "Content-Type", html))},
	{name: "HTML with status 200 throughout", do: every(middlebox.Status(http.StatusOK, page, "Content-Type", html)), ends: burst},
	{name: "a page of the server's type", do: some(0.3, middlebox.Status(http.StatusOK, page, "Content-Type", "application/octet-stream"))},
	{name: "empty answers", do: some(0.3, middlebox.Status(http.StatusOK, ""))},
	{name: "204", do: some(0.3, middlebox.Status(http.StatusNoContent, ""))},
	{name: "redirects", do: some(0.3, middlebox.Status(http.StatusFound, "", "Location", "https://portal.example/"))},
	{name: "redirects throughout", do: every(middlebox.Status(http.StatusPermanentRedirect, "", "Location", "/")), ends: burst},
	{name: "cookie wall", do: every(middlebox.CookieWall), ends: burst},

	{name: "whole requests", do: every(middlebox.WholeRequests)},
	{name: "whole answers", do: every(middlebox.WholeAnswers(0))},
	{name: "whole requests and answers", do: every(middlebox.All(middlebox.WholeRequests, middlebox.WholeAnswers(0)))},
	{name: "whole answers, for a while", do: every(middlebox.WholeAnswers(0)), ends: burst},
	{name: "gzip", do: every(middlebox.Gzip(true))},
	{name: "gzip that holds back", do: every(middlebox.Gzip(false))},
	{name: "gzip of whole answers", do: every(middlebox.All(middlebox.Gzip(false), middlebox.WholeAnswers(0)))},
	{name: "tiny chunks", do: every(middlebox.Tiny(7)), size: 50 << 10},
	{name: "1xx answers", do: every(middlebox.Interim(8))},
	{name: "trailers", do: every(middlebox.Trailers)},
	{name: "header walls", do: every(middlebox.Headers(60))},
	{name: "one exchange at a time", do: alone(0)},
	{name: "one exchange at a time, others 503", do: alone(http.StatusServiceUnavailable), full: true},
	{name: "idle answers ended at 1 s", do: every(middlebox.Ends(time.Second, 0)), size: 20 << 10},
	{name: "idle answers ended at 10 s", do: every(middlebox.Ends(10*time.Second, 0))},
	{name: "answers ended at 1 s", do: every(middlebox.Ends(0, time.Second))},
	{name: "client's address changes", do: every(middlebox.From(5, "192.0.2.1", "198.51.100.1", "2001:db8::1"))},

	{name: "HTTP/2 to HTTP/1.1", late: true, ends: burst, do: func(s *scene) middlebox.Fault {
		s.old.Store(!s.old.Load())
		s.path.Reset(0)
		return middlebox.GoAway
	}},
	{name: "connections reset at every age", late: true, ends: burst, do: again(30, burst/30, func(s *scene) {
		s.path.Reset(time.Duration(s.dice.Below(300)) * time.Millisecond)
	})},
	{name: "black hole", late: true, ends: burst, do: again(2, burst/2, func(s *scene) { s.path.Blackhole() })},
	{name: "outage of 5 s", late: true, ends: 5 * time.Second, do: down(5*time.Second, false)},
	{name: "outage of 5 s with resets", late: true, ends: 5 * time.Second, do: down(5*time.Second, true)},
}

// down stops the path for so long, and may reset what was there.
func down(d time.Duration, reset bool) func(*scene) middlebox.Fault {
	return func(s *scene) middlebox.Fault {
		s.path.SetDown(true)
		if reset {
			s.path.Reset(0)
		}
		time.AfterFunc(d, func() { s.path.SetDown(false) })
		return nil
	}
}
