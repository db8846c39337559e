import sys, time, json, torch, gc
from benchmarks.estimate_settings import build, FOLDER
from benchmarks.serving_inputs import write_adapters
from benchmarks.serving_engine import Bench
from worker.inference.kernels import paged_attention as pa
def graph_ms(f, n=20):
    s=torch.cuda.Stream(); s.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(s): f(); f()
    torch.cuda.current_stream().wait_stream(s)
    g=torch.cuda.CUDAGraph()
    with torch.cuda.graph(g): f()
    for _ in range(3): g.replay()
    a,b=torch.cuda.Event(enable_timing=True),torch.cuda.Event(enable_timing=True)
    a.record()
    for _ in range(n): g.replay()
    b.record(); b.synchronize(); return a.elapsed_time(b)/n
torch.set_grad_enabled(False)
H,D,L=32,128,276
best={}
for B in (1,8,32,128):
    P=B*24+1
    caches=[(torch.randn(P,16,H,D,device="cuda",dtype=torch.bfloat16),torch.randn(P,16,H,D,device="cuda",dtype=torch.bfloat16)) for _ in range(4 if B==128 else 8)]
    tables=(torch.randperm(P-1,device="cuda").int()+1)[:B*24].view(B,24).contiguous()
    pos=torch.full((B,),L-1,device="cuda")
    q=torch.randn(B,H,D,device="cuda",dtype=torch.bfloat16).transpose(0,1)
    row=[]
    for tile in (32,64,128):
        for w in (2,4,8):
            for st in (1,2,3):
              for enough in ((512,1024) if B<=8 else (512,)):
                pa._DECODE_TILE,pa._DECODE_WARPS,pa._DECODE_STAGES,pa._ENOUGH_PROGRAMS=tile,w,st,enough
                t=graph_ms(lambda:[pa.decode(q,k,v,tables,pos,pa.Look(0.088)) for k,v in caches],10)/len(caches)*1e3
                row.append((round(t,1),tile,w,st,enough))
    row.sort()
    print(B, "floor", round(B*L*H*D*4/3.0e6,1), row[:6], row[-1], flush=True)
    del caches
pa._DECODE_TILE,pa._DECODE_WARPS,pa._DECODE_STAGES,pa._ENOUGH_PROGRAMS=64,4,2,512
build("llama-7b")
folder=FOLDER/"models"/"llama-7b"
ad_=write_adapters(folder, FOLDER/"adapters", 8)
b=Bench(folder, adapters=ad_, load_in_4bit=False)
print("\nloaded", b.loaded_seconds, "ready", b.ready_seconds, flush=True)
b.adapters=[a.ready_for(torch.bfloat16, pinned=True) for a in b.adapters]
for batch,n in [(8,8),(1,0),(1,1),(8,0),(8,8),(32,0),(32,1),(32,8),(64,0),(64,8),(128,0),(128,8)]:
    print(json.dumps(b.run(batch,n,prompt_tokens=128,new_tokens=256)), flush=True)
