package tunnel

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Transport is the name that bridge lines have for this transport.
const Transport = "turbo"

// Errors of CheckBridge, and with it of ParseBridgeLine.
var (
	errNoURL = errors.New("needs url=, the URL of the server")
	errNoKey = errors.New("needs key=, the server's public key, which turbo_bridgeline.txt in its state directory holds")
)

// With returns c with the fields that args name set to their values, as Set does
// it. The names are those of Arguments.
func (c Config) With(args map[string]string) (Config, error) {
	if _, both := args["front"]; both {
		if _, both := args["fronts"]; both {
			return c, errors.New("front and fronts are both given; name all domains in fronts")
		}
	}
	// In a fixed order, so that of several errors the same is always shown.
	for _, name := range slices.Sorted(maps.Keys(args)) {
		if err := c.Set(name, args[name]); err != nil {
			return c, err
		}
	}
	return c, nil
}

// CheckBridge is Check for what bridge lines say: these need a key, too.
func (c Config) CheckBridge() error {
	switch {
	case c.URL == "":
		return errNoURL
	case c.Key == "":
		return errNoKey
	}
	return c.Check()
}

// ParseBridgeLine reads a bridge line: "Bridge turbo ADDRESS FINGERPRINT url=…
// key=…", as torrc has it or with any of the first words left out, and with a comment
// behind. What tor alone needs, the address and the fingerprint, is not looked at. The
// error repeats no value that is well formed.
func ParseBridgeLine(line string) (Config, error) { return Config{}.WithBridgeLine(line) }

// WithBridgeLine reads a bridge line as ParseBridgeLine does. What the line does not
// say is as in c.
func (c Config) WithBridgeLine(line string) (Config, error) {
	words := strings.Fields(line)
	if i := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, "#") }); i >= 0 {
		words = words[:i]
	}
	if len(words) > 0 && strings.EqualFold(words[0], "Bridge") {
		words = words[1:]
	}
	forTor := 0 // how many words are tor's
	if len(words) > 0 && words[0] == Transport {
		words, forTor = words[1:], 2
	}
	args := make(map[string]string)
	for i, word := range words {
		name, value, isArg := strings.Cut(word, "=")
		switch _, twice := args[name]; {
		case !isArg && i < forTor:
		case !isArg:
			return Config{}, fmt.Errorf("the bridge line has the word %.40q, where %s and arguments such as url=https://host/path are expected", word, Transport)
		case twice:
			return Config{}, fmt.Errorf("the bridge line has %.40q twice; once is enough", name)
		default:
			args[name] = value
		}
	}
	c, err := c.With(args)
	if err == nil {
		err = c.CheckBridge()
	}
	if err != nil {
		return Config{}, err
	}
	return c, nil
}

// Line is c as the arguments of a bridge line, which ParseBridgeLine reads.
func (c Config) Line() string {
	var words []string
	for _, arg := range []struct{ name, value string }{
		{"url", c.URL},
		{"key", c.Key},
		{"fronts", strings.ReplaceAll(c.Fronts, " ", "")},
		{"addr", c.Addr},
		{"engine", c.Engine},
		{"mode", c.Mode},
		{"utls", strings.ReplaceAll(c.UTLS, " ", "")},
		{"ech", c.ECH},
		{"doh", c.DoH},
	} {
		if arg.value != "" {
			words = append(words, arg.name+"="+arg.value)
		}
	}
	return strings.Join(words, " ")
}
