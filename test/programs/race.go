//go:build race

package programs

func init() { buildFlags = append(buildFlags, "-race") }
