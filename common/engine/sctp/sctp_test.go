package sctp

import (
	"testing"

	"turbotunnel/common/engine/enginetest"
)

func TestConformance(t *testing.T) { enginetest.Run(t, Engine{}) }

func BenchmarkEngine(b *testing.B) { enginetest.Benchmark(b, Engine{}) }
