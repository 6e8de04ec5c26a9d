// Package kubernetes checks the manifests against the types of the API server. It is a
// module of its own, so that the gateway's does not depend on Kubernetes.
package kubernetes

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// objects reads all manifests strictly: an unknown or repeated key is an error.
func objects(t *testing.T) map[string][]runtime.Object {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	files, err := filepath.Glob("*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatal(files, err)
	}
	all := make(map[string][]runtime.Object)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
			document, err := documents.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			object, _, err := decoder.Decode(document, nil, nil)
			if err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			all[file] = append(all[file], object)
		}
	}
	return all
}

// pods returns the pods that an object makes, with their labels.
func pods(object runtime.Object) []corev1.PodTemplateSpec {
	switch o := object.(type) {
	case *appsv1.Deployment:
		return []corev1.PodTemplateSpec{o.Spec.Template}
	case *appsv1.DaemonSet:
		return []corev1.PodTemplateSpec{o.Spec.Template}
	case *corev1.Pod:
		return []corev1.PodTemplateSpec{{ObjectMeta: o.ObjectMeta, Spec: o.Spec}}
	}
	return nil
}

func containers(spec corev1.PodSpec) []corev1.Container {
	return append(append([]corev1.Container(nil), spec.InitContainers...), spec.Containers...)
}

func TestContainersMayDoNothingButTheirWork(t *testing.T) {
	count := 0
	for file, list := range objects(t) {
		for _, object := range list {
			for _, pod := range pods(object) {
				if p := pod.Spec.SecurityContext; p == nil || p.SeccompProfile == nil || p.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
					t.Errorf("%s: no seccomp profile", file)
				}
				for _, c := range containers(pod.Spec) {
					count++
					s := c.SecurityContext
					if s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
						t.Errorf("%s: %s may write or become more", file, c.Name)
						continue
					}
					if s.Capabilities == nil || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" {
						t.Errorf("%s: %s keeps capabilities", file, c.Name)
					}
					for _, added := range s.Capabilities.Add {
						if added != "NET_BIND_SERVICE" && c.Name == "dotgate" || !pod.Spec.HostNetwork {
							t.Errorf("%s: %s gets %s", file, c.Name, added)
						}
					}
				}
			}
		}
	}
	if count < 5 {
		t.Errorf("there are %d containers", count)
	}
}

func TestWhatIsMountedIsThere(t *testing.T) {
	for file, list := range objects(t) {
		for _, object := range list {
			for _, pod := range pods(object) {
				volumes := make(map[string]bool)
				for _, v := range pod.Spec.Volumes {
					volumes[v.Name] = true
					if v.ConfigMap != nil && v.ConfigMap.Name != "dotgate" {
						t.Errorf("%s: there is no ConfigMap %s", file, v.ConfigMap.Name)
					}
				}
				for _, c := range containers(pod.Spec) {
					for _, m := range c.VolumeMounts {
						if !volumes[m.Name] {
							t.Errorf("%s: %s mounts %s, which is no volume", file, c.Name, m.Name)
						}
					}
				}
			}
		}
	}
}

// Selectors must match the right pods, and ports must exist.
func TestSelectorsFindTheirPods(t *testing.T) {
	selects := func(s labels.Selector, pod corev1.PodTemplateSpec) bool { return s.Matches(labels.Set(pod.Labels)) }
	of := func(s *metav1.LabelSelector) labels.Selector {
		selector, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			t.Fatal(err)
		}
		return selector
	}
	all := objects(t)
	deployment := find[*appsv1.Deployment](t, all)
	daemons := find[*appsv1.DaemonSet](t, all)
	service := find[*corev1.Service](t, all)
	for what, selector := range map[string]labels.Selector{
		"Deployment":          of(deployment.Spec.Selector),
		"spread":              of(deployment.Spec.Template.Spec.TopologySpreadConstraints[0].LabelSelector),
		"Service":             labels.SelectorFromSet(service.Spec.Selector),
		"PodDisruptionBudget": of(find[*policyv1.PodDisruptionBudget](t, all).Spec.Selector),
		"NetworkPolicy":       of(&find[*networkingv1.NetworkPolicy](t, all).Spec.PodSelector),
	} {
		if !selects(selector, deployment.Spec.Template) {
			t.Errorf("the %s does not select the pods of the Deployment", what)
		}
		if selects(selector, daemons.Spec.Template) {
			t.Errorf("the %s selects the pods of the DaemonSet, too", what)
		}
	}
	if !selects(of(daemons.Spec.Selector), daemons.Spec.Template) {
		t.Error("the DaemonSet does not select its own pods")
	}
	ports := make(map[string]corev1.ContainerPort)
	for _, p := range deployment.Spec.Template.Spec.Containers[0].Ports {
		ports[p.Name] = p
	}
	for _, p := range service.Spec.Ports {
		if p.TargetPort.Type != intstr.String || ports[p.TargetPort.StrVal].Protocol != p.Protocol || ports[p.TargetPort.StrVal].ContainerPort != 53 {
			t.Errorf("the Service leads to %v, which the pods don't have", p.TargetPort)
		}
	}
}

func find[T runtime.Object](t *testing.T, all map[string][]runtime.Object) (found T) {
	t.Helper()
	count := 0
	for _, list := range all {
		for _, object := range list {
			if o, ok := object.(T); ok {
				found = o
				count++
			}
		}
	}
	if count != 1 {
		t.Fatalf("there are %d of %T", count, found)
	}
	return found
}

// dotgate check must accept the configuration of each pod.
func TestTheGatewayTakesTheConfiguration(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "dotgate")
	build := exec.Command("go", "build", "-o", program, "./cmd/dotgate")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	all := objects(t)
	file := filepath.Join(dir, "dotgate.yaml")
	if err := os.WriteFile(file, []byte(find[*corev1.ConfigMap](t, all).Data["dotgate.yaml"]), 0o600); err != nil {
		t.Fatal(err)
	}
	checked := 0
	for name, list := range all {
		for _, object := range list {
			for _, pod := range pods(object) {
				for _, c := range containers(pod.Spec) {
					if c.Name != "dotgate" {
						continue
					}
					check := exec.Command(program, "check")
					if strings.Contains(strings.Join(c.Args, " "), "--config") {
						check.Args = append(check.Args, "--config", file)
					}
					for _, e := range c.Env {
						check.Env = append(check.Env, e.Name+"="+e.Value)
					}
					if out, err := check.CombinedOutput(); err != nil {
						t.Errorf("%s: %v\n%s", name, err, out)
					}
					checked++
				}
			}
		}
	}
	if checked != 3 {
		t.Errorf("%d gateways were checked", checked)
	}
}
