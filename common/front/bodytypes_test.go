package front

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

// A front that refuses types gets the next one, until one passes; that one stays
// while now and then an answer is not the server's.
func TestBodyTypes(t *testing.T) {
	for _, allowed := range []string{"", "multipart/related", "application/octet-stream"} {
		t.Run("only "+allowed, func(t *testing.T) {
			each(t, func(t *testing.T, opts serverOptions, change func(*Config), _ string) {
				s := serve(t, opts, func(w http.ResponseWriter, r *http.Request) {
					if name, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); name != allowed {
						w.WriteHeader(http.StatusForbidden)
					}
				})
				f := newFront(t, s, change)
				tries := 0
				for exchangeStatus(t, f) != http.StatusOK {
					if tries++; tries > 2 {
						t.Fatal("no type has passed")
					}
				}
				if got := exchangeStatus(t, f); got != http.StatusOK {
					t.Errorf("after a success: status %d", got)
				}
			})
		})
	}
}

func TestBodyTypeStays(t *testing.T) {
	of := func(statuses ...int) string {
		b := newBodyTypes()
		for _, status := range statuses {
			b.answered("", status)
		}
		return b.current()
	}
	long := slices.Repeat([]int{http.StatusOK}, 1000)
	for name, c := range map[string]struct {
		statuses []int
		stays    bool
	}{
		"refused at once":            {[]int{403}, false},
		"too large":                  {[]int{413, 413, 413}, true},
		"too many":                   {[]int{429, 429}, true},
		"no fronting":                {[]int{421}, true},
		"gateway in trouble":         {[]int{502, 503, 504}, true},
		"now and then":               {slices.Repeat(append([]int{403}, long[:2]...), 100)[1:], true},
		"five in a row":              {append(slices.Clone(long), 404, 404, 404, 404, 404), true},
		"six in a row":               {append(slices.Clone(long), 404, 404, 404, 404, 404, 404), false},
		"others have been under way": {[]int{403, 403, 403, 403}, false},
	} {
		if got := of(c.statuses...); (got == "") != c.stays {
			t.Errorf("%s: the type is %q", name, got)
		}
	}

	b := newBodyTypes()
	b.answered("", http.StatusForbidden)
	second := b.current()
	b.refused("")
	if got := b.current(); got != second {
		t.Errorf("refusals of the type before made %q of %q", got, second)
	}
	for range 2 {
		b.refused(b.current())
	}
	if got := b.current(); got != "" {
		t.Errorf("after the last type comes %q", got)
	}
}

// A web page in place of the server's answer counts as well.
func TestForeignBodyType(t *testing.T) {
	inSet(t, "a", func(t *testing.T, x *setTest) {
		resp, err := x.set.RoundTrip(post(t.Context(), "x"))
		if err != nil {
			t.Fatal(err)
		}
		x.set.Foreign(resp)
		resp.Body.Close()
		if got := x.set.members[0].front.types.current(); got == "" {
			t.Error("the type is the same")
		}
	})
}
