package engines

import "testing"

func TestTable(t *testing.T) {
	seen := make(map[string]bool)
	for _, name := range Names() {
		if seen[name] {
			t.Errorf("two engines are called %q", name)
		}
		seen[name] = true
		if e, ok := Find(name); !ok || e.Name() != name {
			t.Errorf("Find(%q) = %v, %v", name, e, ok)
		}
	}
	if names := Names(); names[0] != Default {
		t.Errorf("the first of %q is not the default %q", names, Default)
	}
	for _, name := range []string{"", "KCP", "none"} {
		if _, ok := Find(name); ok {
			t.Errorf("Find(%q) found an engine", name)
		}
	}
}
