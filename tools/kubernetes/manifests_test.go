// Package kubernetes checks the manifests in deploy/kubernetes by the libraries that Kubernetes itself has. It is a module
// of its own, so that services do not get them.
package kubernetes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	podsecurity "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const folder = "../../deploy/kubernetes"

var services = []string{"gateway", "inventory", "logging", "order", "webhooks"}

// builtin decodes the kinds that every cluster has, strictly: a field that there is not is an error.
func builtin(t *testing.T) runtime.Decoder {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
}

// overlay is what `kubectl apply -k` would apply.
type overlay struct {
	objects []metav1.Object
	custom  []*unstructured.Unstructured // of kinds that operators bring
}

// build builds an overlay in a copy of the folder with made-up secrets in it.
func build(t *testing.T, name string) overlay {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(folder)); err != nil {
		t.Fatal(err)
	}
	writeSecrets(t, filepath.Join(dir, name, "secrets"))
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	decoder, o := builtin(t), overlay{}
	for _, r := range built.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		object, _, err := decoder.Decode(text, nil, nil)
		if runtime.IsNotRegisteredError(err) {
			fields, err := r.Map()
			if err != nil {
				t.Fatal(err)
			}
			o.custom = append(o.custom, &unstructured.Unstructured{Object: fields})
			continue
		}
		if err != nil {
			t.Errorf("%s %s: %v", r.GetKind(), r.GetName(), err)
			continue
		}
		o.objects = append(o.objects, object.(metav1.Object))
	}
	return o
}

func writeSecrets(t *testing.T, dir string) {
	t.Helper()
	for _, service := range services {
		certs := filepath.Join(dir, "certs", service)
		if err := os.MkdirAll(certs, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"cert.pem", "key.pem", "ca.pem"} {
			if err := os.WriteFile(filepath.Join(certs, file), []byte("made up"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	var env bytes.Buffer
	for _, name := range secretNames {
		fmt.Fprintf(&env, "%s=made-up\n", name)
	}
	if err := os.WriteFile(filepath.Join(dir, "shop.env"), env.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// secretNames are those that `shop secrets` makes.
var secretNames = []string{
	"SHOP_ID_SECRET", "POSTGRES_PASSWORD", "ORDERS_PASSWORD", "INVENTORY_PASSWORD", "LOGGING_PASSWORD", "WEBHOOKS_PASSWORD", "RABBITMQ_PASSWORD",
	"GATEWAY_AMQP_PASSWORD", "ORDER_AMQP_PASSWORD", "INVENTORY_AMQP_PASSWORD", "LOGGING_AMQP_PASSWORD", "WEBHOOKS_AMQP_PASSWORD", "SHOP_OPERATOR_TOKENS",
}

func find[T metav1.Object](o overlay) (found []T) {
	for _, object := range o.objects {
		if t, ok := object.(T); ok {
			found = append(found, t)
		}
	}
	return found
}

// workload is whatever runs pods.
type workload struct {
	name     string
	replicas int32 // 0 for what ends by itself
	pod      corev1.PodTemplateSpec
}

func (o overlay) workloads() (all []workload) {
	for _, d := range find[*appsv1.Deployment](o) {
		all = append(all, workload{d.Name, *d.Spec.Replicas, d.Spec.Template})
	}
	for _, s := range find[*appsv1.StatefulSet](o) {
		all = append(all, workload{s.Name, *s.Spec.Replicas, s.Spec.Template})
	}
	for _, j := range find[*batchv1.Job](o) {
		all = append(all, workload{j.Name, 0, j.Spec.Template})
	}
	for _, c := range find[*batchv1.CronJob](o) {
		all = append(all, workload{c.Name, 0, c.Spec.JobTemplate.Spec.Template})
	}
	return all
}

// eachOverlay runs a test on every overlay there is.
func eachOverlay(t *testing.T, test func(t *testing.T, o overlay)) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(folder, "*", "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	tested := 0
	for _, file := range found {
		if name := filepath.Base(filepath.Dir(file)); name != "base" {
			tested++
			t.Run(name, func(t *testing.T) { test(t, build(t, name)) })
		}
	}
	if tested == 0 {
		t.Fatal("there is no overlay")
	}
}

func TestManifests_EveryServiceIsThere(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		var names []string
		for _, d := range find[*appsv1.Deployment](o) {
			names = append(names, d.Name)
		}
		slices.Sort(names)
		if !slices.Equal(names, services) {
			t.Errorf("deployments are %v, want %v", names, services)
		}
	})
}

func TestManifests_AllPodsAreAdmittedIfTheStandardIsRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := podsecurity.LevelVersion{Level: podsecurity.LevelRestricted, Version: podsecurity.LatestVersion()}
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, w := range o.workloads() {
			result := policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, &w.pod.ObjectMeta, &w.pod.Spec))
			if !result.Allowed {
				t.Errorf("%s: %s", w.name, result.ForbiddenDetail())
			}
		}
		for _, n := range find[*corev1.Namespace](o) {
			if n.Labels[podsecurity.EnforceLevelLabel] != string(podsecurity.LevelRestricted) {
				t.Errorf("namespace %s does not enforce it", n.Name)
			}
		}
	})
}

func TestManifests_EveryContainerIsBoundedAndConfined(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, w := range o.workloads() {
			if auto := w.pod.Spec.AutomountServiceAccountToken; auto == nil || *auto {
				t.Errorf("%s has a service account token", w.name)
			}
			for _, c := range slices.Concat(w.pod.Spec.InitContainers, w.pod.Spec.Containers) {
				for _, problem := range containerProblems(c, w.replicas > 0) {
					t.Errorf("%s, container %s: %s", w.name, c.Name, problem)
				}
			}
		}
	})
}

func containerProblems(c corev1.Container, serves bool) (problems []string) {
	missing := func(is bool, problem string) {
		if is {
			problems = append(problems, problem)
		}
	}
	security := c.SecurityContext
	missing(security == nil || security.ReadOnlyRootFilesystem == nil || !*security.ReadOnlyRootFilesystem, "its root file system is not read-only")
	missing(c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero(), "no requests of CPU and memory")
	missing(c.Resources.Limits.Memory().IsZero(), "no limit of memory")
	missing(c.Resources.Limits.Memory().Cmp(*c.Resources.Requests.Memory()) < 0, "its limit of memory is below its request")
	tag := c.Image[strings.LastIndex(c.Image, "/")+1:]
	missing(!strings.ContainsAny(tag, ":@") || strings.HasSuffix(tag, ":latest"), "its image "+c.Image+" has no version")
	if serves {
		missing(c.StartupProbe == nil, "no startup probe")
		missing(c.ReadinessProbe == nil, "no readiness probe")
		missing(c.LivenessProbe == nil, "no liveness probe")
	}
	return problems
}

// A probe asks what a service answers: /livez depends on nothing, or a dependency that is away would restart everything.
func TestManifests_ProbesMeanWhatTheySay(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, d := range find[*appsv1.Deployment](o) {
			c := d.Spec.Template.Spec.Containers[0]
			for what, probe := range map[string]struct {
				probe *corev1.Probe
				path  string
			}{"startup": {c.StartupProbe, "/livez"}, "readiness": {c.ReadinessProbe, "/readyz"}, "liveness": {c.LivenessProbe, "/livez"}} {
				if get := probe.probe.HTTPGet; get == nil || get.Path != probe.path || get.Port != intstr.FromString("admin") {
					t.Errorf("%s: the %s probe asks %v, want %s", d.Name, what, get, probe.path)
				}
			}
			if c.ReadinessProbe.TimeoutSeconds < 3 { // the service takes up to 2 s to ask its dependencies
				t.Errorf("%s: readiness has %d s to answer", d.Name, c.ReadinessProbe.TimeoutSeconds)
			}
		}
	})
}

func TestManifests_ARolloutAndADrainedNodeLeaveAReplica(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, d := range find[*appsv1.Deployment](o) {
			if *d.Spec.Replicas < 2 {
				t.Errorf("%s has %d replicas", d.Name, *d.Spec.Replicas)
			}
			if r := d.Spec.Strategy.RollingUpdate; r == nil || r.MaxUnavailable.IntValue() != 0 {
				t.Errorf("%s: a rollout takes a replica away before its successor is ready", d.Name)
			}
			if !slices.ContainsFunc(find[*policyv1.PodDisruptionBudget](o), func(b *policyv1.PodDisruptionBudget) bool {
				return selects(t, b.Spec.Selector, d.Spec.Template.Labels) && b.Spec.MaxUnavailable.IntValue() == 1
			}) {
				t.Errorf("%s has no disruption budget", d.Name)
			}
			for _, over := range []string{corev1.LabelHostname, corev1.LabelTopologyZone} {
				if !slices.ContainsFunc(d.Spec.Template.Spec.TopologySpreadConstraints, func(c corev1.TopologySpreadConstraint) bool {
					return c.TopologyKey == over && c.WhenUnsatisfiable == corev1.ScheduleAnyway && selects(t, c.LabelSelector, d.Spec.Template.Labels)
				}) {
					t.Errorf("%s is not spread over %s, or cannot be scheduled without", d.Name, over)
				}
			}
		}
	})
}

// The delay and the stop that follows it, which takes 10 s at most, end before Kubernetes kills.
func TestManifests_AStopHasTheTimeThatItTakes(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, d := range find[*appsv1.Deployment](o) {
			config := o.config(t, d)
			delay, err := time.ParseDuration(config["SHUTDOWN_DELAY"])
			if err != nil || delay < 5*time.Second {
				t.Errorf("%s: SHUTDOWN_DELAY is %q, want what the endpoints of a service take to change", d.Name, config["SHUTDOWN_DELAY"])
			}
			if grace := time.Duration(*d.Spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second; grace < delay+10*time.Second {
				t.Errorf("%s is killed after %s, and takes %s and 10 s", d.Name, grace, delay)
			}
		}
	})
}

// config is what a deployment's container gets from ConfigMaps as a whole.
func (o overlay) config(t *testing.T, d *appsv1.Deployment) map[string]string {
	t.Helper()
	values := map[string]string{}
	for _, from := range d.Spec.Template.Spec.Containers[0].EnvFrom {
		for _, c := range find[*corev1.ConfigMap](o) {
			if c.Name == from.ConfigMapRef.Name {
				for key, value := range c.Data {
					values[key] = value
				}
			}
		}
	}
	return values
}

// Otherwise each start makes what is on a volume the group's to write, and PostgreSQL and Erlang refuse such files.
func TestManifests_AStartLeavesWhatIsOnAVolumeAsItIs(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, s := range find[*appsv1.StatefulSet](o) {
			security := s.Spec.Template.Spec.SecurityContext
			if p := security.FSGroupChangePolicy; security.FSGroup != nil && (p == nil || *p != corev1.FSGroupChangeOnRootMismatch) {
				t.Errorf("%s: fsGroupChangePolicy is not OnRootMismatch", s.Name)
			}
		}
	})
}

// What a value refers to is there: a $(NAME) that is not stays as it is, and a key that is not keeps the pod from starting.
func TestManifests_ValuesAndSecretsThatAreReferredToAreThere(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		for _, d := range find[*appsv1.Deployment](o) {
			known := o.config(t, d)
			for _, v := range d.Spec.Template.Spec.Containers[0].Env {
				expanded := os.Expand(strings.NewReplacer("$(", "${", ")", "}").Replace(v.Value), func(name string) string {
					if _, ok := known[name]; !ok {
						t.Errorf("%s: %s refers to $(%s), which comes later or not at all", d.Name, v.Name, name)
					}
					return known[name]
				})
				known[v.Name] = expanded
				if from := v.ValueFrom; from != nil {
					ref := from.SecretKeyRef
					optional := ref.Optional != nil && *ref.Optional
					if !optional && !slices.Contains(secretNames, ref.Key) {
						t.Errorf("%s: no secret is called %s", d.Name, ref.Key)
					}
					known[v.Name] = "password"
				}
			}
			for name, scheme := range map[string]string{"AMQP_URL": "amqp", "DATABASE_URL": "postgres://"} {
				if url, given := known[name]; given && (!strings.HasPrefix(url, scheme) || strings.ContainsAny(url, " $")) {
					t.Errorf("%s: %s is %q", d.Name, name, url)
				}
			}
		}
	})
}

func TestManifests_NothingIsReachableThatIsNotNamed(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		policies := find[*networkingv1.NetworkPolicy](o)
		if !slices.ContainsFunc(policies, func(p *networkingv1.NetworkPolicy) bool {
			return len(p.Spec.PodSelector.MatchLabels)+len(p.Spec.PodSelector.MatchExpressions)+len(p.Spec.Ingress)+len(p.Spec.Egress) == 0 && len(p.Spec.PolicyTypes) == 2
		}) {
			t.Error("there is no policy that denies everything else")
		}
		for _, w := range o.workloads() {
			if !slices.ContainsFunc(policies, func(p *networkingv1.NetworkPolicy) bool {
				return len(p.Spec.Ingress)+len(p.Spec.Egress) > 0 && p.Name != "names" && selects(t, &p.Spec.PodSelector, w.pod.Labels)
			}) {
				t.Errorf("%s may reach nobody, nor anybody it", w.name)
			}
		}
	})
}

func selects(t *testing.T, selector *metav1.LabelSelector, of map[string]string) bool {
	t.Helper()
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		t.Fatal(err)
	}
	return s.Matches(labels.Set(of))
}

// What `make kube` makes is in no repository.
func TestManifests_TheRepositoryHasNoSecrets(t *testing.T) {
	tracked, err := exec.Command("git", "ls-files", folder).Output()
	if err != nil {
		t.Skipf("no repository: %v", err)
	}
	for file := range strings.Lines(string(tracked)) {
		file = strings.TrimSpace(file)
		text, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(text)
		if err := errors.Join(err, text.Close()); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(file, "/secrets/") || bytes.Contains(content, []byte("kind: Secret\n")) || bytes.Contains(content, []byte("PRIVATE KEY")) {
			t.Errorf("%s is or has a secret", file)
		}
	}
}
