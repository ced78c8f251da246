import sys, pytest
from pathlib import Path
from portproof.check import check, Settings
from portproof.mirror import Mirror, InputSpec
from portproof.plan import phases_for
P=Path("/work/main/tests/ports")
CASES=[
 ("classifier","classifier",["2,3,17,13"]),("classifier","classifier_without_permute",["2,3,17,13"]),
 ("two_inputs","two_inputs",["ids=2,7:int64<50","features=2,7,3"]),
 ("two_inputs","two_inputs_by_name",["ids=2,7:int64<50","features=2,7,3"]),
 ("two_inputs","two_inputs_as_list",["ids=2,7:int64<50","features=2,7,3"]),
 ("reordered","reordered",["3,6"]),("perceptron","perceptron",["3,6"]),("perceptron","missing_bias",["3,6"]),("perceptron","extra_parameter",["3,6"]),
 ("perceptron","frozen_layer",["3,6"]),("perceptron","functional_perceptron",["3,6"]),("with_dropout","with_dropout",["3,6"]),("casting","perceptron",["3,6"]),("perceptron","casting",["3,6"]),
 ("stubborn","perceptron",["3,6"]),("perceptron","stubborn",["3,6"]),("shared","shared",["3,6"]),("shared","shared_functional",["3,6"]),("shared","shared_once",["3,6"]),
 ("in_place","in_place",["2,3,9"]),("perceptron","compiled",["3,6"]),("perceptron","compiled_part",["3,6"]),("perceptron","compiled_wrong",["3,6"]),
 ("gated","gated",["3,6"]),("gated","gated_wrong",["3,6"]),("separable","separable",["2,3,7,6"]),("nans","nans",["3,6"]),
]
@pytest.mark.parametrize("case",CASES,ids=lambda c:c[0]+"-"+c[1])
def test_it(case,in_process):
    import time
    t=time.time()
    a,b,inputs=case
    m=Mirror(b,f"{P/'pairs_torch.py'}:{a}",f"{P/'pairs_keras.py'}:{b}",tuple(InputSpec.parse(i,default_name="x") for i in inputs))
    try: r=check(m)
    except Exception as e:
        print("CASE",a,b,type(e).__name__,e); return
    print("CASE",a,b,r.verdict.outcome,r.verdict.summary,round(time.time()-t,2))
    for c in r.verdict.checks:
        if c.status!="pass": print("    ",c.status,c.name,c.value,c.limit,c.where,list(c.details)[:12])
    d=r.verdict.divergence
    if d: print("    DIV",d.layer,d.other,d.what,d.phase,d.relative,d.inputs_agree,d.causes,d.settings)
    print("    notes",[s["notes"] for s in r.facts.sides.values()])
