package latency

import (
	"testing"
	"time"
)

func TestMillis(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{0: "0", time.Minute: "60000", 1234567: "1.234"} {
		text, err := Millis(d).MarshalJSON()
		if err != nil || string(text) != want {
			t.Errorf("%v: got %s, %v", d, text, err)
		}
		var back Millis
		if err := back.UnmarshalJSON(text); err != nil || (time.Duration(back)-d).Abs() > time.Microsecond {
			t.Errorf("%s: got %v, %v", text, time.Duration(back), err)
		}
	}
	if new(Millis).UnmarshalJSON([]byte(`"1s"`)) == nil {
		t.Error("a text is taken for milliseconds")
	}
}
